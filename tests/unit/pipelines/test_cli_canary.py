"""``serin canary`` as a user types it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serin.core.errors import ConfigError, InputError
from serin.core.journal import Journal
from serin.core.storage import LocalStorage
from serin.deploy.lease import Lease
from serin_pipelines.cli import app


def recorded(path: Path, seed: int, *, ratio: float = 1.0, errors: float = 0.0, number: int = 400) -> Path:
    rng = random.Random(seed)
    lines = (
        {
            "session": f"{seed}-{n // 2}",
            "time": f"2026-01-01T00:{n // 60:02d}:{n % 60:02d}Z",
            "ttft_ms": ratio * rng.lognormvariate(5, 0.4),
            "status": 500 if rng.random() < errors else 200,
        }
        for n in range(number)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def run(*arguments: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["canary", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def a_rollout(folder: Path, **plan: object) -> Journal:
    journal = Journal(LocalStorage(folder), "assistant")
    journal.append("promotion", release_id="a" * 64, decision="promoted")
    evidence = {"rollout_id": "r1", "champion": "a" * 64, "fence": 1, **plan}
    journal.append("rollout", release_id="b" * 64, decision="started", evidence=evidence)
    journal.append("rollout", release_id="b" * 64, decision="advance", evidence={"rollout_id": "r1", "step": 0})
    return journal


def test_status_tells_state_and_champion_before_during_and_after(tmp_path: Path) -> None:
    told = json.loads(run("status", "--store", tmp_path, "--json"))
    assert told == {"endpoint": "assistant", "champion": None, "rollout": None}
    journal = a_rollout(tmp_path)
    told = json.loads(run("status", "--store", tmp_path, "--json"))
    assert (told["rollout"], told["state"], told["champion"]) == ("r1", "step", "a" * 64)
    assert told["driven_by"] == ""
    run("pause", "--approved-by", "ada", "--store", tmp_path)
    assert json.loads(run("status", "--store", tmp_path, "--json"))["paused_by"] == "ada"
    journal.append("rollout", release_id="b" * 64, decision="aborted", evidence={"rollout_id": "r1"})
    assert "aborted" in run("status", "--store", tmp_path)


def test_a_command_is_left_to_whoever_drives_the_rollout(tmp_path: Path) -> None:
    journal = a_rollout(tmp_path)
    with Lease(LocalStorage(tmp_path), "assistant", host="elsewhere", renew=False):
        told = json.loads(run("abort", "--approved-by", "ada", "--reason", "no", "--store", tmp_path, "--json"))
        driven = json.loads(run("status", "--store", tmp_path, "--json"))
    assert told == {"rollout": "r1", "asked": "abort", "carried_out": False}
    assert driven["driven_by"].startswith("elsewhere, process ")
    assert driven["asked"] == "abort"
    entry = journal.entries()[-1]
    assert (entry.kind, entry.decision, entry.approved_by, entry.reasons) == ("command", "abort", "ada", ("no",))


def test_commands_need_a_rollout_and_a_name(tmp_path: Path) -> None:
    for what in ("pause", "resume", "promote", "abort"):
        with pytest.raises(InputError, match=f"there is nothing to {what}"):
            run(what, "--approved-by", "ada", "--store", tmp_path)
    a_rollout(tmp_path)
    with pytest.raises(InputError, match="needs a name"):
        run("abort", "--approved-by", " ", "--store", tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return recorded(tmp_path / "champion.jsonl", 1), recorded(tmp_path / "candidate.jsonl", 2, ratio=1.6)


def test_judge_prints_one_object_with_decision_and_evidence(files: tuple[Path, Path]) -> None:
    stable, canary = files
    found = json.loads(run("judge", "--stable", stable, "--canary", canary, "--metric", "ttft_ms", "--json"))
    assert found["decision"] == "rollback"
    assert found["evidence"]["metrics"]["ttft_ms"]["estimate"] == pytest.approx(1.6, rel=0.15)
    assert found["reasons"][0].startswith("ttft_ms is ")
    same = json.loads(run("judge", "--stable", stable, "--canary", stable, "--json"))
    assert same["decision"] == "promote"
    same = json.loads(run("judge", "--stable", stable, "--canary", stable, "--not-last-step", "--json"))
    assert same["decision"] == "advance"


def test_judge_tells_people_and_scripts(files: tuple[Path, Path]) -> None:
    output = run("judge", "--stable", files[0], "--canary", files[1], "--exit-code", code=21)
    assert output.startswith("rollback")
    assert "rolls back at 20" in output


@pytest.mark.parametrize("nested", [False, True])
def test_judge_takes_a_policy_alone_or_in_a_configuration(
    files: tuple[Path, Path], tmp_path: Path, nested: bool
) -> None:
    metric = "{name: ttft, kind: log_mean, tolerated: 2.0, limit: 3.0, required: true}"
    policy = f"{{default_metrics: false, metrics: [{metric}]}}"
    (tmp_path / "p.yaml").write_text(f"deploy: {{judge: {policy}}}" if nested else policy, encoding="utf-8")
    found = run("judge", "--stable", files[0], "--canary", files[1], "--policy", tmp_path / "p.yaml", "--json")
    assert json.loads(found)["decision"] == "promote"


def test_a_bad_file_or_policy_is_one_sentence_and_nothing_on_standard_output(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"Line 1 of bad\.jsonl has no 'session'"):
        run("judge", "--stable", files[0], "--canary", tmp_path / "bad.jsonl", "--json")
    (tmp_path / "p.yaml").write_text("alfa: 0.1", encoding="utf-8")
    with pytest.raises(ConfigError, match="'alfa' is not a setting of JudgePolicy"):
        run("judge", "--stable", files[0], "--canary", files[1], "--policy", tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("[", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        run("simulate", "--policy", tmp_path / "p.yaml")


def test_simulate_draws_from_recorded_sessions_and_reports_every_harm(tmp_path: Path) -> None:
    events = recorded(tmp_path / "events.jsonl", 3, errors=0.02)
    options = (
        "--events",
        events,
        "--runs",
        "3",
        "--requests",
        "1200",
        "--share",
        "10",
        "--share",
        "50",
        "--looks",
        "6",
    )
    found = json.loads(run("simulate", *options, "--harm", "ttft=2", "--harm", "errors=0.3", "--json"))
    assert set(found["harms"]) == {"ttft=2", "errors=0.3"}
    assert all(harm["detected_fraction"] == 1.0 for harm in found["harms"].values())
    assert found["metrics"] == ["errors", "ttft"]
    assert "rolled back" in run("simulate", *options, "--harm", "ttft=2")


def test_simulate_refuses_a_harm_that_it_cannot_put_on(tmp_path: Path) -> None:
    for harm in ("ttft", "ttft=fast", "=2", "ttft=-1"):
        with pytest.raises(ConfigError, match="METRIC=SIZE"):
            run("simulate", "--runs", "1", "--harm", harm)
    with pytest.raises(InputError, match="No harm can be put on 'cost'"):
        run("simulate", "--runs", "1", "--requests", "300", "--harm", "cost=2")
