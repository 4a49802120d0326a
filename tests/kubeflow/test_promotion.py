"""Promotion: done once, and judged by the journal of the target's store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from serin.core.errors import ConfigError, InputError, InterruptedRunError
from serin.core.journal import Journal
from serin.core.prompts import Prompt
from serin.core.release import Part, Release, save_release
from serin.core.storage import storage_for
from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow.client import Kubeflow
from serin_pipelines.kubeflow.follow import Watch
from serin_pipelines.kubeflow.packages import Package, read_package
from serin_pipelines.kubeflow.progress import Progress
from serin_pipelines.kubeflow.promotion import Request, Verdict, promote
from serin_pipelines.kubeflow.summaries import markdown, write_summary

from .conftest import QUICK, WATCH
from .fake_kfp import FakeKubeflow
from .fake_scripts import Script, canceled, failing, succeeding

TASKS = ("echo", "echo-2")
Writes = Callable[[str], None]


def release(number: int) -> Release:
    """A release of no substance; the number makes it its own."""
    part = Part(kind="model", digest=f"{number:064x}", uri="file:///nowhere")
    return Release(model=part, index=part, data=part, prompt=Prompt(), guardrails={}, serving={}, code_version="0" * 16)


@pytest.fixture
def source_uri(tmp_path: Path) -> str:
    """A store with two releases."""
    uri = (tmp_path / "source").as_uri()
    for number in (1, 2):
        save_release(storage_for(uri), release(number))
    return uri


@pytest.fixture
def journal(environment: Environment) -> Journal:
    """The target's journal; release 2 is the champion."""
    journal = Journal(storage_for(environment.store_uri), environment.endpoint)
    journal.append("promotion", release_id=release(2).id, decision="promoted", approved_by="bootstrap")
    return journal


@pytest.fixture
def run_it(
    kubeflow: Kubeflow, environment: Environment, source_uri: str, promotion_file: Path, journal: Journal
) -> Callable[..., Verdict]:
    """Promotes release 1, or another."""

    def run(number: int = 1, watch: Watch = WATCH, using: Kubeflow = kubeflow, approved_by: str = "ada") -> Verdict:
        request = Request(release=release(number).id[:12], source_store_uri=source_uri, approved_by=approved_by)
        return promote(using, package, environment, request, watch, Progress(Console(), quiet=True))

    def package() -> Package:
        return read_package(promotion_file)

    return run


def gate(journal: Journal, decision: str) -> Writes:
    """Writes what the evaluation of a run would."""
    return lambda run_id: _append(journal, run_id, "gate", decision, {"token_f1": 0.8125}, (f"F1 says {decision}.",))


def rollout(journal: Journal, decision: str) -> Writes:
    """Writes what a canary would, its promotion included."""

    def write(run_id: str) -> None:
        reasons = (f"The judge says {decision}.",)
        _append(journal, run_id, "gate", "pass", {"token_f1": 0.8125})
        _append(journal, run_id, "rollout", "started", {})
        _append(journal, run_id, "rollout", decision, {"candidate_sessions": 91}, reasons)
        if decision == "promote":
            _append(journal, run_id, "promotion", "promoted", {"candidate_sessions": 91}, reasons)

    return write


def _append(
    journal: Journal, run_id: str, kind: str, decision: str, evidence: dict[str, Any], reasons: tuple[str, ...] = ()
) -> None:
    journal.append(
        kind, release_id=release(1).id, decision=decision, evidence=evidence, reasons=reasons, lineage_id=run_id
    )


def test_a_promotion_is_what_the_journal_says_it_is(
    fake: FakeKubeflow, run_it: Callable[..., Verdict], journal: Journal, environment: Environment, source_uri: str
) -> None:
    fake.scripts.append(succeeding(*TASKS, at={3: rollout(journal, "promote")}))
    verdict = run_it()
    (run,) = fake.runs.values()
    assert (verdict.verdict, verdict.exit_code) == ("promoted", 0)
    assert (verdict.release, verdict.run_id) == (release(1).id, run["run_id"])
    assert verdict.reasons == ("The judge says promote.",)
    assert verdict.evidence == {"gate": "pass", "token_f1": 0.8125, "candidate_sessions": 91}
    assert run["runtime_config"]["parameters"] == {
        "release_id": release(1).id,
        "source_store_uri": source_uri,
        "approved_by": "ada",
        "store_uri": environment.store_uri,
        "tracking_uri": "",
        "endpoint": "assistant",
    }
    assert run["service_account"] == "serin-pipeline"


@pytest.mark.parametrize(("decision", "expected", "code"), [("rollback", "rolled_back", 21), ("hold", "held", 22)])
def test_a_canary_that_is_not_promoted_is_the_verdict(
    fake: FakeKubeflow, run_it: Callable[..., Verdict], journal: Journal, decision: str, expected: str, code: int
) -> None:
    fake.scripts.append(succeeding(*TASKS, at={3: rollout(journal, decision)}))
    verdict = run_it()
    assert (verdict.verdict, verdict.exit_code) == (expected, code)
    assert verdict.reasons == (f"The judge says {decision}.",)


def test_a_gate_that_says_no_is_the_verdict_though_the_run_ended_well(
    fake: FakeKubeflow, run_it: Callable[..., Verdict], journal: Journal
) -> None:
    fake.scripts.append(succeeding(*TASKS, at={2: gate(journal, "fail")}))
    verdict = run_it()
    assert (verdict.verdict, verdict.exit_code) == ("gate_failed", 20)
    assert verdict.evidence == {"gate": "fail", "token_f1": 0.8125}


def test_a_run_that_fails_without_a_decision_is_the_verdict_with_its_task(
    fake: FakeKubeflow, run_it: Callable[..., Verdict], journal: Journal
) -> None:
    fake.scripts.append(failing(*TASKS, message="The release's model was changed.", at={2: gate(journal, "pass")}))
    verdict = run_it()
    assert (verdict.verdict, verdict.exit_code) == ("run_failed", 23)
    assert verdict.reasons == (f"Run {verdict.run_id} failed in task 'echo-2': The release's model was changed.",)


def test_a_run_that_is_canceled_is_the_verdict(fake: FakeKubeflow, run_it: Callable[..., Verdict]) -> None:
    fake.scripts.append(canceled(*TASKS))
    verdict = run_it()
    assert (verdict.verdict, verdict.exit_code) == ("canceled", 24)


def test_a_run_that_fails_after_it_has_promoted_has_promoted(
    fake: FakeKubeflow, run_it: Callable[..., Verdict], journal: Journal
) -> None:
    fake.scripts.append(failing(*TASKS, message="MLflow is away.", at={3: rollout(journal, "promote")}))
    verdict = run_it()
    assert verdict.verdict == "promoted"
    assert "MLflow is away." in verdict.reasons[-1]


def test_a_run_that_ends_well_and_decides_nothing_has_failed(
    fake: FakeKubeflow, run_it: Callable[..., Verdict]
) -> None:
    fake.scripts.append(succeeding(*TASKS))
    verdict = run_it()
    assert verdict.verdict == "run_failed"
    assert "the journal has no decision with its id" in verdict.reasons[0]


def test_decisions_of_other_runs_do_not_count(
    fake: FakeKubeflow, run_it: Callable[..., Verdict], journal: Journal
) -> None:
    rollout(journal, "rollback")("an-earlier-run")
    fake.scripts.append(failing(*TASKS, message="no space left"))
    verdict = run_it()
    assert verdict.verdict == "run_failed"
    assert verdict.evidence == {}


def test_a_champion_is_not_promoted_again_and_nothing_is_sent(
    fake: FakeKubeflow, run_it: Callable[..., Verdict]
) -> None:
    verdict = run_it(2)
    assert (verdict.verdict, verdict.exit_code, verdict.approved_by) == ("already_champion", 0, "bootstrap")
    assert fake.requests == []


def test_a_promotion_that_is_under_way_is_attached_to(
    fake: FakeKubeflow, run_it: Callable[..., Verdict], journal: Journal
) -> None:
    script = succeeding(*TASKS, at={5: rollout(journal, "promote")})
    script.steps.insert(1, {"RUN": "RUNNING"})
    fake.scripts.append(script)
    with pytest.raises(InterruptedRunError, match=f"'serin promote {release(1).id[:12]} --to test' follows it again"):
        run_it(watch=Watch(poll_s=0.05, timeout_s=0.01))
    verdict = run_it(approved_by="someone else")
    assert verdict.verdict == "promoted"
    assert list(fake.runs) == [verdict.run_id]
    assert verdict.approved_by == "ada"


def test_two_jobs_that_promote_at_once_follow_one_run(
    fake: FakeKubeflow, environment: Environment, run_it: Callable[..., Verdict], journal: Journal
) -> None:
    def other(method: str, path: str) -> None:
        if method == "POST" and path.endswith("/runs"):
            fake.before = None
            with (
                Kubeflow.connect(environment, patience=QUICK) as mine,
                pytest.raises(InterruptedRunError),
            ):
                run_it(watch=Watch(poll_s=0.05, timeout_s=0.01), using=mine)

    fake.scripts += [succeeding(*TASKS, at={3: rollout(journal, "promote")}), Script([])]
    fake.before = other
    verdict = run_it()
    first, second = sorted(fake.runs)
    assert (verdict.verdict, verdict.run_id) == ("promoted", first)
    assert fake.runs[second]["state"] == "CANCELED"


def test_a_release_that_is_not_in_the_source_store_is_refused_before_anything_is_sent(
    fake: FakeKubeflow, run_it: Callable[..., Verdict]
) -> None:
    with pytest.raises(InputError, match="is no release of this store"):
        run_it(3)
    assert fake.requests == []


def test_an_environment_without_a_store_is_refused(
    kubeflow: Kubeflow, environment: Environment, source_uri: str
) -> None:
    bare = environment.model_copy(update={"store_uri": ""})
    request = Request(release=release(1).id, source_store_uri=source_uri, approved_by="ada")
    with pytest.raises(ConfigError, match="has no store_uri"):
        promote(kubeflow, lambda: pytest.fail("compiled"), bare, request, WATCH, Progress(Console(), quiet=True))


def test_the_summary_shows_numbers_and_reasons_and_nothing_in_it_breaks_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = Verdict(
        release="ab" * 32,
        environment="prod",
        endpoint="assistant",
        verdict="gate_failed",
        run_id="run-1",
        url="https://kubeflow.example/#/runs/details/run-1",
        reasons=("F1 fell | by\n.2 <img>.",),
        approved_by="ada",
        evidence={"token_f1": 0.123456, "suite": {"rows": 120}, "list": [1, 2]},
    )
    text = markdown(verdict)
    assert "## ❌ The gate said no: `abababababab` in prod" in text
    assert "- F1 fell \\| by .2 &lt;img>." in text
    assert "| run | [run-1](https://kubeflow.example/#/runs/details/run-1) |" in text
    assert "| token_f1 | 0.1235 |" in text
    assert "| suite.rows | 120 |" in text
    assert "list" not in text
    job = tmp_path / "job.md"
    job.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(job))
    write_summary(verdict, None)
    assert job.read_text() == f"before\n{text}"
    write_summary(verdict, tmp_path / "own.md")
    assert (tmp_path / "own.md").read_text() == text
    with pytest.raises(ConfigError, match="cannot be written"):
        write_summary(verdict, tmp_path / "none" / "own.md")
