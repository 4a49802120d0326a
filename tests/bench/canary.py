"""The canary's judge and the rules of its peers on the same simulated and recorded noise.

    make bench-canary          # .venv/bin/python tests/bench/canary.py

Simulated: sticky sessions of three requests on average, failures and latencies correlated within a session, 6,000
requests at 10% traffic, 30 looks.  Recorded: a database's latency on 11,000 short-lived machines a kind
(../shared/data/vm_noise_canary, CC BY 4.0; left out where it is absent).  The last line is one JSON object.
"""

import argparse
import csv
import gzip
import json
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from canary_peers import PEERS, Recorded

from serin.deploy.config import JudgePolicy, MetricPolicy
from serin.deploy.simulate import Harm, Plan, SyntheticTraffic, Traffic, assign, harmed, roll_out

MACHINES = Path(__file__).resolve().parents[3] / "shared" / "data" / "vm_noise_canary" / "dev"
POLICY, PLAN = JudgePolicy(), Plan(num_requests=6000, looks=30, shares_percent=(10.0,))
HARMS = {
    "identical": None,
    "ttft_40pct": Harm("ttft", 1.4),
    "errors_2_8": Harm("errors", 0.06),
    "errors_2_5": Harm("errors", 0.03),
}
CORRELATION = 0.1
OTHER_CORRELATIONS = (0.0, 0.3)
MACHINE_PLAN = Plan(num_requests=1200, looks=30, shares_percent=(50.0,))
MACHINE_POLICY = JudgePolicy(
    default_metrics=False,
    metrics=(MetricPolicy(name="ttft", kind="log_mean", tolerated=1.1, limit=1.4, required=True),),
)
Decided = dict[str, int | None]
"""By rule: the candidate's requests until its rollback, None without one."""


def one_rollout(job: tuple[str, float, int]) -> Decided:
    """All rules on one simulated rollout."""
    harm_name, correlation, run = job
    rng = np.random.default_rng([20, run])
    model = SyntheticTraffic(error_correlation=correlation)
    traffic = model.draw(rng, PLAN.num_requests)
    of_candidate = assign(traffic, PLAN, rng)
    if harm := HARMS[harm_name]:
        traffic = harmed(traffic, of_candidate, harm, POLICY, rng)
    mean_ttft = model.ttft_ms * math.exp((model.session_sd**2 + model.request_sd**2) / 2)
    return decide(POLICY, PLAN, traffic, of_candidate, mean_ttft, model.error_rate)


def decide(
    policy: JudgePolicy, plan: Plan, traffic: Traffic, of_candidate: Any, usual_latency: float, usual_errors: float
) -> Decided:
    """Each rule's verdict on the same requests."""
    mine = of_candidate[traffic.session]
    looks = np.linspace(0, len(mine), plan.looks + 1).astype(int)[1:]
    canary = np.cumsum(mine)
    failed = traffic.values.get("errors", np.zeros(len(mine)))
    recorded = Recorded(mine, traffic.values["ttft"], failed, looks, usual_latency, usual_errors)
    ours = roll_out(policy, traffic, of_candidate, plan).detected
    decided: Decided = {"serin": ours[1] if ours else None}
    for name, rule in PEERS.items():
        look = rule(recorded)
        decided[name] = None if look is None else int(canary[looks[look] - 1])
    return decided


def machines(kind: str, sku: str) -> tuple[np.ndarray, np.ndarray]:
    """Times and latencies of a kind of machine, in order of time."""
    with gzip.open(MACHINES / f"pg_latency_ms_{kind}_eastus_{sku}.csv.gz", "rt", encoding="utf-8") as file:
        rows = [
            (datetime.fromisoformat(row["starttime"]).timestamp(), float(row["value"])) for row in csv.DictReader(file)
        ]
    rows.sort()
    return np.array([time for time, _ in rows]), np.array([value for _, value in rows])


def machine_rollouts(job: tuple[str, bool, int]) -> list[Decided]:
    """Rollouts on recorded machines of one load: same kind on both sides, or another kind as the candidate.

    Each takes machines of the same stretch of time, a machine being a session of one request.
    """
    kind, same, runs = job
    found = []
    for sku in ("D8s_v5", "B8ms") if same else ("D8s_v5",):
        old = machines(kind, sku)
        new = old if same else machines(kind, "B8ms")
        for run in range(runs):
            rng = np.random.default_rng([30, run])
            found.append(one_machine_rollout(old, new, rng, same=same))
    return found


def one_machine_rollout(old: Any, new: Any, rng: np.random.Generator, *, same: bool) -> Decided:
    """Some 600 machines a side, from a stretch of 1,200 machines of the champion's."""
    begin = int(rng.integers(len(old[0]) - MACHINE_PLAN.num_requests))
    since, until = old[0][begin], old[0][begin + MACHINE_PLAN.num_requests]
    sides = []
    for times, values in (old, new):
        inside = (times >= since) & (times < until)
        sides.append((times[inside], values[inside]))
    if same:
        half = rng.random(len(sides[0][0])) < 0.5
        sides = [(sides[0][0][~half], sides[0][1][~half]), (sides[0][0][half], sides[0][1][half])]
    times = np.concatenate([times for times, _ in sides])
    order = np.argsort(times, kind="stable")
    values = np.concatenate([values for _, values in sides])[order]
    of_candidate = np.repeat([False, True], [len(side[0]) for side in sides])[order]
    traffic = Traffic(np.arange(len(values)), {"ttft": values})
    return decide(MACHINE_POLICY, MACHINE_PLAN, traffic, of_candidate, float(sides[0][1].mean()), 0.0)


def fraction(decided: list[Decided], rule: str) -> float:
    """The share of rollouts that a rule rolls back."""
    return round(sum(one[rule] is not None for one in decided) / len(decided), 4)


def median(decided: list[Decided], rule: str) -> float | None:
    """Median of the candidate's requests until the rollback; None where half are never rolled back."""
    values = sorted(math.inf if (value := one[rule]) is None else value for one in decided)
    middle = values[(len(values) - 1) // 2]
    return None if math.isinf(middle) else float(middle)


def figures(worlds: dict[str, list[Decided]], rule: str) -> dict[str, Any]:
    """The figures of one rule."""
    medians = {name: median(worlds[name], rule) for name in HARMS if name != "identical"}
    both = [medians["ttft_40pct"], medians["errors_2_8"]]
    found: dict[str, Any] = {"false_rollback_fraction": fraction(worlds["identical"], rule)}
    found |= {f"detect_{name}": fraction(worlds[name], rule) for name in medians}
    found["median_canary_requests"] = None if None in both else max(value for value in both if value is not None)
    found |= {f"median_canary_requests_{name}": value for name, value in medians.items()}
    if "same_machines" in worlds:
        found["same_machines_false_rollback_fraction"] = fraction(worlds["same_machines"], rule)
        found["detect_other_machines"] = fraction(worlds["other_machines"], rule)
    return found


def main() -> None:
    """Run all worlds on the processors there are; a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=int, default=400, help="rollouts with each harm; identical ones three times that"
    )
    runs = parser.parse_args().runs
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        worlds = {name: list(pool.map(one_rollout, _jobs(name, CORRELATION, runs), chunksize=25)) for name in HARMS}
        others = {
            correlation: {
                name: list(pool.map(one_rollout, _jobs(name, correlation, max(runs // 2, 1)), chunksize=25))
                for name in HARMS
            }
            for correlation in OTHER_CORRELATIONS
        }
        if MACHINES.is_dir():
            for same, name in ((True, "same_machines"), (False, "other_machines")):
                jobs = [(kind, same, max(runs // 8, 1)) for kind in ("ro", "rw")]
                worlds[name] = [one for found in pool.map(machine_rollouts, jobs) for one in found]
    result = {
        **figures(worlds, "serin"),
        "runs": {name: len(decided) for name, decided in worlds.items()},
        "by_error_correlation": {str(key): figures(value, "serin") for key, value in others.items()},
        "peers": {name: figures(worlds, name) for name in PEERS},
    }
    _print_table({"serin": result, **result["peers"]})
    sys.stdout.write(json.dumps(result) + "\n")


def _jobs(name: str, correlation: float, runs: int) -> list[tuple[str, float, int]]:
    return [(name, correlation, run) for run in range(3 * runs if name == "identical" else runs)]


def _print_table(by_rule: dict[str, Any]) -> None:
    names = [name for name, value in by_rule["serin"].items() if not isinstance(value, dict)]
    sys.stdout.write(f"{'':42}" + "".join(f"{rule[:16]:>18}" for rule in by_rule) + "\n")
    for name in names:
        values = "".join(f"{'-' if (value := found[name]) is None else f'{value:g}':>18}" for found in by_rule.values())
        sys.stdout.write(f"{name:42}{values}\n")


if __name__ == "__main__":
    main()
