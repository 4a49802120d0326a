"""serin evaluate compare, as a user types it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serin.core.errors import ConfigError, InputError
from serin_pipelines.cli import app

POLICY = """
rules:
  - {metric: accuracy, kind: non_inferiority, against: champion, margin: 0.02}
  - {metric: accuracy, kind: no_regression, against: champion, slices: ["language:*"]}
  - {metric: seconds, kind: ceiling, limit: 2.0}
lower_is_better: [seconds]
"""


def serin(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


def rows(accuracy: float, seed: int, count: int = 600, **more: Any) -> list[dict[str, Any]]:
    correct = np.random.default_rng(seed).random(count) < accuracy
    return [
        {"id": f"q{i}", "accuracy": bool(correct[i]), "seconds": 1.0, "language": "fr" if i % 5 == 0 else "en", **more}
        for i in range(count)
    ]


def written(path: Path, items: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(items), path)
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in items), encoding="utf-8")
    return str(path)


def compared(folder: Path, one: list[dict[str, Any]], other: list[dict[str, Any]], suffix: str = ".jsonl") -> Any:
    (folder / "gate.yaml").write_text(POLICY, encoding="utf-8")
    return serin(
        "evaluate", "compare", "--candidate", written(folder / f"new{suffix}", one), "--champion",
        written(folder / f"old{suffix}", other), "--policy", str(folder / "gate.yaml"), "--json",
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_better_candidate_passes_and_the_same_command_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    done = compared(tmp_path, rows(0.9, 1), rows(0.8, 2), suffix)
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["decision"] == "pass"
    assert values["evidence"]["rules"][0]["observed"]["count"] == 600
    assert compared(tmp_path, rows(0.9, 1), rows(0.8, 2), suffix).stdout == done.stdout


def test_a_worse_candidate_fails_with_exit_code_20(tmp_path: Path) -> None:
    done = compared(tmp_path, rows(0.7, 1), rows(0.8, 2))
    assert done.exit_code == 20
    assert json.loads(done.stdout)["decision"] == "fail"


def test_a_slower_candidate_breaks_its_ceiling(tmp_path: Path) -> None:
    slow = [{**one, "seconds": 3.0} for one in rows(0.9, 1)]
    reasons = json.loads(compared(tmp_path, slow, rows(0.8, 2)).stdout)["reasons"]
    assert "at most 2.000 is required" in reasons[0]


def test_harm_that_only_one_slice_sees_is_found(tmp_path: Path) -> None:
    better = [{**one, "accuracy": one["language"] == "en"} for one in rows(0.9, 1)]
    done = compared(tmp_path, better, rows(0.6, 2))
    assert done.exit_code == 20
    assert "in language:fr is surely worse" in json.loads(done.stdout)["reasons"][0]


def test_items_that_are_missing_changed_or_seen_in_training_fail(tmp_path: Path) -> None:
    good, old = rows(0.9, 1), rows(0.8, 2)
    assert "has no value for 3 items" in compared(tmp_path, good[3:], old).output
    changed = [{**one, "digest": f"{i}"} for i, one in enumerate(good)]
    assert "saw different items" in compared(tmp_path, changed, [{**one, "digest": "x"} for one in old]).output
    leaked = [{**good[0], "contaminated": True}, *good[1:]]
    assert "1 items were seen in training (q0)" in compared(tmp_path, leaked, old).output


def test_without_a_policy_every_shared_metric_must_hold(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a.jsonl", rows(0.9, 1)), written(tmp_path / "b.jsonl", rows(0.6, 2))
    done = serin("evaluate", "compare", "--candidate", one, "--champion", other)
    assert done.exit_code == 0, done.output
    assert "The gate says: pass." in done.stdout


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no items"),
        ("not json\n", "is not JSON lines"),
        ("[1]\n", "line 1 is no JSON object"),
        ('{"accuracy": 1}\n', "has no 'id'"),
        ('{"id": "a", "accuracy": NaN}\n', "a metric is a finite number"),
        ('{"id": "a", "x": 1}\n{"id": "a", "x": 1}\n', "repeats the id 'a'"),
        ('{"id": "a", "metrics": 3}\n', "is no object"),
        ('{"id": "a", "other": 3}\n', "share no metric"),
        ('{"id": "zzz", "accuracy": 3}\n', "share no item id"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(content, encoding="utf-8")
    good = written(tmp_path / "good.jsonl", [{"id": "a", "accuracy": 1}, {"id": "b", "accuracy": 0}])
    error = serin("evaluate", "compare", "--candidate", str(bad), "--champion", good).exception
    assert isinstance(error, InputError)
    assert sentence in str(error)


def test_a_policy_with_a_mistake_names_it(tmp_path: Path) -> None:
    items, policy = written(tmp_path / "a.jsonl", rows(0.5, 1)), tmp_path / "gate.yaml"
    policy.write_text("rules: [{metric: accuracy, kind: best}]", encoding="utf-8")
    error = serin("evaluate", "compare", "--candidate", items, "--champion", items, "--policy", str(policy)).exception
    assert isinstance(error, ConfigError)
    assert "kind" in str(error)


def test_options_alone_still_mean_the_stage(tmp_path: Path) -> None:
    done = serin("evaluate", "--release", "deadbeef", "--baseline", "deadbeef", "--dataset", str(tmp_path / "none"))
    assert done.exception is not None
    assert "No such command" not in done.output
