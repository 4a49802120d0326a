"""Recorded requests: what is read, what is refused by line, and what comes of real noise."""

import csv
import gzip
import json
import math
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serin.core.errors import ConfigError, InputError
from serin.deploy.config import JudgePolicy
from serin.deploy.judge import judge
from serin.deploy.judge_files import fields_of, observe_files, policy_for, read_requests, without_absent


def rows(seed: int, number: int, *, ratio: float = 1.0, start: float = 0.0, **fields: Any) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"session": f"{seed}-{n // 2}", "time": start + n, "wait": ratio * rng.lognormvariate(2, 0.3), **fields}
        for n in range(number)
    ]


def written(path: Path, values: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")
    return path


def decided(folder: Path, old: list[dict[str, Any]], new: list[dict[str, Any]], *names: str) -> Any:
    stable = read_requests(written(folder / "a.jsonl", old), of_candidate=False)
    canary = read_requests(written(folder / "b.jsonl", new), of_candidate=True)
    policy = policy_for(JudgePolicy(), names, [*stable, *canary])
    return judge(observe_files(stable, canary, policy), policy, last_step=True)


def test_a_named_field_is_judged_alone(tmp_path: Path) -> None:
    assert decided(tmp_path, rows(1, 400), rows(2, 400), "wait").outcome == "promote"
    slower = decided(tmp_path, rows(1, 400), rows(2, 400, ratio=1.5), "wait")
    assert slower.outcome == "rollback"
    assert slower.evidence["metrics"]["wait"]["kind"] == "log_mean"
    assert decided(tmp_path, rows(1, 400), rows(2, 400, ratio=1.5), "wait:log_mean:higher").outcome == "promote"


def test_parquet_and_json_lines_say_the_same(tmp_path: Path) -> None:
    old = written(tmp_path / "a.jsonl", rows(1, 200))
    pq.write_table(pa.Table.from_pylist(rows(1, 200)), tmp_path / "a.parquet")
    from_lines, from_parquet = (read_requests(path, of_candidate=False) for path in (old, tmp_path / "a.parquet"))
    assert [(one.session, one.time_s, one.fields("wait")) for one in from_lines] == [
        (one.session, one.time_s, one.fields("wait")) for one in from_parquet
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"Line 2 of a\.jsonl is not JSON"),
        ("[1]", r"Line 2 of a\.jsonl is not an object"),
        ('{"time": 1}', r"Line 2 of a\.jsonl has no 'session'"),
        ('{"session": "s"}', r"Line 2 of a\.jsonl has no 'time'"),
        ('{"session": "s", "time": "soon"}', r"Line 2 of a\.jsonl: The time 'soon' is neither"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"session": "s", "time": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_requests(path, of_candidate=False)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"PAR1 and then nothing"])
def test_a_file_that_holds_no_requests_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="a "):
        read_requests(tmp_path / "a", of_candidate=False)
    with pytest.raises(InputError, match="is no file"):
        read_requests(tmp_path / "absent", of_candidate=False)


def test_a_field_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No request has 'weight'; there are: wait"):
        decided(tmp_path, rows(1, 40), rows(2, 40), "weight")
    with pytest.raises(ConfigError, match="is not NAME, NAME:KIND"):
        decided(tmp_path, rows(1, 40), rows(2, 40), "wait:median")


@pytest.mark.parametrize(("value", "message"), [("slow", "needs a number"), (-1.0, "positive number"), (0, "positive")])
def test_a_value_that_does_not_fit_its_metric_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decided(tmp_path, rows(1, 40), [*rows(2, 40), {"session": "x", "time": 50, "wait": value}], "wait:log_mean")


@pytest.mark.parametrize(
    ("name", "value", "kind", "better"),
    [
        ("failed", lambda rng: rng.random() < 0.3, "rate", "lower"),
        ("error", lambda rng: "timeout" if rng.random() < 0.3 else "", "rate", "lower"),
        ("support_score", lambda rng: rng.random(), "bounded_mean", "higher"),
        ("value", lambda rng: 0.1 + rng.random() / 10, "log_mean", "lower"),
        ("cost", lambda rng: rng.random() * 9 + 0.1, "log_mean", "lower"),
        ("valid", lambda rng: rng.random() < 0.9, "rate", "higher"),
    ],
)
def test_the_kind_of_a_metric_is_told_by_its_values(
    tmp_path: Path, name: str, value: Callable[[random.Random], Any], kind: str, better: str
) -> None:
    rng = random.Random(3)
    made = [{"session": str(n), "time": n, name: value(rng)} for n in range(60)]
    requests = read_requests(written(tmp_path / "a.jsonl", made), of_candidate=False)
    metric = policy_for(JudgePolicy(), [name], requests).metrics[0]
    assert (metric.kind, metric.better, metric.required) == (kind, better, True)


def test_sides_that_were_recorded_one_after_the_other_are_compared_in_order_and_it_is_said(tmp_path: Path) -> None:
    apart = decided(tmp_path, rows(1, 400), rows(2, 400, start=1e6), "wait")
    assert (apart.outcome, apart.evidence["same_time"]) == ("promote", False)
    assert decided(tmp_path, rows(1, 400), rows(2, 400), "wait").evidence["same_time"] is True


def test_events_of_an_endpoint_are_judged_by_the_metrics_that_they_have(tmp_path: Path) -> None:
    old, new = ([{**row, "status": 200, "ttft_ms": row["wait"]} for row in rows(seed, 600)] for seed in (1, 2))
    stable = read_requests(written(tmp_path / "a.jsonl", old), of_candidate=False)
    canary = read_requests(written(tmp_path / "b.jsonl", new), of_candidate=True)
    observations = observe_files(stable, canary, JudgePolicy())
    assert judge(observations, JudgePolicy(), last_step=True).outcome == "hold"  # no support score, which is required
    relaxed = without_absent(JudgePolicy(), observations)
    assert judge(observations, relaxed, last_step=True).outcome == "promote"


def test_files_without_a_metric_of_the_policy_are_refused(tmp_path: Path) -> None:
    stable = read_requests(written(tmp_path / "a.jsonl", rows(1, 40)), of_candidate=False)
    canary = read_requests(written(tmp_path / "b.jsonl", rows(2, 40)), of_candidate=True)
    with pytest.raises(InputError, match=r"found: wait.*--metric"):
        observe_files(stable, canary, JudgePolicy())
    assert fields_of(stable) == ["wait"]


def machines(folder: Path, kind: str, sku: str) -> list[dict[str, Any]]:
    with gzip.open(folder / f"pg_latency_ms_{kind}_eastus_{sku}.csv.gz", "rt", encoding="utf-8") as file:
        found = [
            {"session": row["VM_id"], "time": row["starttime"], "latency_ms": float(row["value"])}
            for row in csv.DictReader(file)
        ]
    return sorted(found, key=lambda row: datetime.fromisoformat(row["time"]))[:3000]


@pytest.mark.parametrize("kind", ["ro", "rw"])
def test_on_real_noise_the_same_machines_are_promoted_and_slower_ones_rolled_back(
    tmp_path: Path, shared_data: Path, kind: str
) -> None:
    folder = shared_data / "vm_noise_canary" / "dev"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/vm_noise_canary, which is not here")
    fast, slow = machines(folder, kind, "D8s_v5"), machines(folder, kind, "B8ms")
    rng = random.Random(7)
    for same in (fast, slow):
        half = rng.sample(same, len(same))
        assert decided(tmp_path, half[::2], half[1::2], "latency_ms").outcome == "promote"
    verdict = decided(tmp_path, fast, slow, "latency_ms")
    assert verdict.outcome == "rollback"
    assert 1.1 < verdict.evidence["metrics"]["latency_ms"]["estimate"] < 1.6
    assert math.isfinite(verdict.evidence["e_value"])
