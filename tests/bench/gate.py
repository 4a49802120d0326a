"""How often the gate errs: simulated evaluations of known truth, judged by the real comparison and the real policy.

``make bench-gate`` prints a table and, last, one JSON line.  Items differ in difficulty; two systems answer each with
some independence, as two models that were trained on the same data do.
"""

import argparse
import json
import sys
import time

import numpy as np

from serin.evaluate.config import EvaluateConfig, GatePolicy, Rule
from serin.evaluate.gate import decide
from serin.evaluate.metrics import compare
from serin.evaluate.results import Results

METRICS = ("token_f1", "exact_match", "support_score", "number_accuracy")
ITEMS = 500
CONFIG = EvaluateConfig(resamples=2_000)
SHARED = 0.6
"""Share of an answer's luck that both systems have: what makes their values correlate."""


def evaluation(generator: np.random.Generator, loss: float, items: int = ITEMS) -> Results:
    """A candidate that is worse by ``loss`` on every metric, and its champion."""
    ids = [str(number) for number in range(items)]
    comparisons = {}
    for name in METRICS:
        difficulty = generator.beta(4, 1.3, items)  # mean .75
        common = generator.random(items)
        one, other = (_values(name, difficulty - harm, common, generator) for harm in (loss, 0.0))
        found = compare(name, dict(zip(ids, one, strict=True)), dict(zip(ids, other, strict=True)), {}, CONFIG)
        if found:
            comparisons[name] = found
    return Results(release_ids={"candidate": "a"}, values={"candidate": {}}, comparisons={"champion": comparisons})


def _values(name: str, level: np.ndarray, common: np.ndarray, generator: np.random.Generator) -> list[float]:
    own = generator.random(len(level))
    luck = np.where(generator.random(len(level)) < SHARED, common, own)
    if name == "exact_match":
        return (luck < level).astype(float).tolist()
    return np.clip(level + 0.5 * (luck - 0.5), 0, 1).tolist()


def rate(policy: GatePolicy, loss: float, repeats: int, seed: int, items: int = ITEMS) -> float:
    """How often the gate passes."""
    generator = np.random.default_rng(seed)
    return float(
        np.mean([decide(evaluation(generator, loss, items), policy).outcome == "pass" for _ in range(repeats)])
    )


def any_better(repeats: int, seed: int) -> tuple[float, float]:
    """How often at least one of the metrics of identical systems is called better: with Holm's correction, without."""
    generator = np.random.default_rng(seed)
    rules = tuple(Rule(metric=name, kind="superiority", against="champion") for name in METRICS)
    corrected = single = 0
    for _ in range(repeats):
        results = evaluation(generator, 0.0)
        together = decide(results, GatePolicy(rules=rules)).evidence["rules"]
        corrected += any(rule["outcome"] == "passed" for rule in together)
        single += any(rule["p_value"] <= GatePolicy().alpha for rule in together)
    return corrected / repeats, single / repeats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=400)
    repeats = parser.parse_args().repeats
    started = time.perf_counter()
    better = GatePolicy(rules=(Rule(metric="token_f1", kind="superiority", against="champion"),))
    not_worse = GatePolicy(
        rules=tuple(Rule(metric=m, kind="non_inferiority", against="champion", margin=0.02) for m in METRICS[:2])
    )
    unharmed = GatePolicy(rules=tuple(Rule(metric=m, kind="no_regression", against="champion") for m in METRICS))
    corrected, single = any_better(repeats, 1)
    figures = {
        "better_claim_on_identical": rate(better, 0.0, repeats, 2),
        "any_better_claim_on_identical": corrected,
        "any_better_claim_without_correction": single,
        "loss_of_5_points_caught": 1 - rate(not_worse, 0.05, repeats, 3),
        "loss_of_5_points_caught_by_no_regression": 1 - rate(unharmed, 0.05, repeats, 4),
        "false_regression_on_identical": 1 - rate(unharmed, 0.0, repeats, 5),
        "identical_passes_non_inferiority": rate(not_worse, 0.0, repeats, 6),
        "identical_passes_non_inferiority_2000_items": rate(not_worse, 0.0, max(20, repeats // 4), 7, 2_000),
    }
    for name, value in figures.items():
        print(f"{name:<46}{value:8.3f}")
    figures |= {"items": ITEMS, "repeats": repeats, "wall_s": round(time.perf_counter() - started, 1)}
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
