"""Promote a release into an environment: run the promotion pipeline there, and read the verdict from the journal.

A run that ended well says only that its tasks did; whether the gate passed and the canary held is in the journal of
the target's store, in the entries that carry the run's id as their lineage id.
"""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from serin.core.digests import digest_of
from serin.core.errors import ConfigError
from serin.core.journal import Entry, Journal
from serin.core.release import load_release
from serin.core.storage import storage_for
from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow import runs
from serin_pipelines.kubeflow.client import Kubeflow
from serin_pipelines.kubeflow.follow import RunView, Watch, follow
from serin_pipelines.kubeflow.packages import Package
from serin_pipelines.kubeflow.progress import Progress

Outcome = Literal[
    "promoted", "already_champion", "gate_failed", "rolled_back", "held", "run_failed", "canceled", "handed_over"
]

KEY_DIGITS = 24
ROLLOUT_OUTCOMES: dict[str, Outcome] = {"rollback": "rolled_back", "hold": "held"}
EXIT_CODES: dict[Outcome, int] = {
    "promoted": 0,
    "already_champion": 0,
    "gate_failed": 20,
    "rolled_back": 21,
    "held": 22,
    "run_failed": 23,
    "canceled": 24,
    "handed_over": 25,
}


class Verdict(BaseModel):
    """How a promotion ended, for the next step of a CI pipeline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: str
    environment: str
    endpoint: str
    verdict: Outcome
    run_id: str = ""
    url: str = ""
    reasons: tuple[str, ...] = ()
    approved_by: str = ""
    evidence: dict[str, Any] = {}
    """Numbers that the decision rests on."""

    @property
    def exit_code(self) -> int:
        """0 promoted or champion already, 20 gate, 21 rolled back, 22 held, 23 run failed, 24 canceled."""
        return EXIT_CODES[self.verdict]


class Request(BaseModel):
    """What to promote, where to, who says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: str
    """Release id, whole or its first 8 digits at least."""
    source_store_uri: str
    """Where the release is now."""
    approved_by: str


def resolve(request: Request) -> str:
    """The whole id of the release.

    Raises:
        InputError: the source store has no such release.
    """
    return load_release(storage_for(request.source_store_uri), request.release).id


def already(environment: Environment, release_id: str) -> Verdict | None:
    """The verdict for a release that is the champion, without a run; None for any other."""
    journal = Journal(storage_for(environment.store_uri), environment.endpoint)
    if journal.champion() != release_id:
        return None
    promotions = journal.find(kind="promotion", release_id=release_id)
    return Verdict(
        release=release_id,
        environment=environment.name,
        endpoint=environment.endpoint,
        verdict="already_champion",
        reasons=("The release is the champion already.",),
        run_id=promotions[-1].lineage_id if promotions else "",
        approved_by=promotions[-1].approved_by if promotions else "",
        evidence=promotions[-1].evidence if promotions else {},
    )


def promote(
    kubeflow: Kubeflow,
    package: Callable[[], Package],
    environment: Environment,
    request: Request,
    watch: Watch,
    progress: Progress,
) -> Verdict:
    """Promote a release; one that is the champion, or whose promotion is under way, is not promoted twice.

    Args:
        kubeflow: the target's server.
        package: compiles the promotion pipeline for the target, when a run is needed.
        environment: the target.
        request: what, from where, by whom.
        watch: how to follow the run.
        progress: shows it.

    Raises:
        ConfigError: the target has no store.
        InputError: there is no such release.
        InterruptedRunError: the time limit is reached; the same command attaches to the run again.
        KubeflowError: the server refuses.
    """
    require_store(environment)
    release_id = resolve(request)
    if (verdict := already(environment, release_id)) is not None:
        return verdict
    run, names = _attach_or_start(kubeflow, package, environment, request, release_id, progress)
    progress.say(kubeflow.run_url(run.run_id))
    again = f"serin promote {release_id[:12]} --to {environment.name}"
    with progress.following():
        view = follow(kubeflow, run.run_id, watch, show=progress.show, say=progress.say, tasks=names, again=again)
    parameters = (run.runtime_config.parameters if run.runtime_config else None) or {}
    return judge(environment, release_id, view, str(parameters.get("approved_by") or request.approved_by))


def require_store(environment: Environment) -> None:
    """An environment without a store has no journal to read.

    Raises:
        ConfigError: it has none.
    """
    if not environment.store_uri:
        raise ConfigError(f"Environment {environment.name!r} has no store_uri, where its journal would be: add it.")


def judge(environment: Environment, release_id: str, view: RunView, approved_by: str) -> Verdict:
    """The verdict on a run that has ended, from the target's journal.

    Raises:
        IntegrityError: the journal does not hold.
    """
    journal = Journal(storage_for(environment.store_uri), environment.endpoint)
    mine = [entry for entry in journal.entries() if entry.lineage_id == view.run_id and entry.release_id == release_id]
    outcome, decisive = _outcome(mine, view, journal.champion() == release_id)
    reasons = decisive.reasons if decisive else (_without_entry(view, outcome),)
    if decisive and view.state != "SUCCEEDED":
        reasons = (*reasons, view.sentence())
    return Verdict(
        release=release_id,
        environment=environment.name,
        endpoint=environment.endpoint,
        verdict=outcome,
        run_id=view.run_id,
        url=view.url,
        reasons=reasons,
        approved_by=approved_by,
        evidence={**_gate_evidence(mine), **(decisive.evidence if decisive else {})},
    )


def key(environment: Environment, release_id: str) -> str:
    """What makes two promotions the same one."""
    same = ["promotion", release_id, environment.endpoint, environment.store_uri]
    return digest_of(same)[:KEY_DIGITS]


def _attach_or_start(
    kubeflow: Kubeflow,
    package: Callable[[], Package],
    environment: Environment,
    request: Request,
    release_id: str,
    progress: Progress,
) -> tuple[Any, tuple[str, ...]]:
    experiment_id = runs.experiment(kubeflow, environment.experiment)
    mine = key(environment, release_id)
    if (running := _running(kubeflow, experiment_id, mine)) is not None:
        progress.say(f"Run {running.run_id} promotes this release already: following it.")
        return running, runs.tasks_of(kubeflow, running)
    compiled = package()
    arguments = {
        "release_id": release_id,
        "source_store_uri": request.source_store_uri,
        "approved_by": request.approved_by,
        "store_uri": environment.store_uri,
        "tracking_uri": environment.tracking_uri,
        "endpoint": environment.endpoint,
    }
    order = runs.Order(
        version=runs.publish(kubeflow, compiled),
        experiment_id=experiment_id,
        name=f"promote {release_id[:12]} to {environment.name}",
        arguments=compiled.arguments([], arguments),
        service_account=environment.service_account,
        key=mine,
        plugins={"mlflow": {"experiment_name": environment.endpoint}},
    )
    started = runs.start(kubeflow, order, progress.say)
    first = _running(kubeflow, experiment_id, mine)
    if first is not None and first.run_id != started.run_id:
        # another job has started the same promotion in the same second: both agree on the oldest
        kubeflow.call("end a second promotion", kubeflow.kfp.runs.run_service_terminate_run, started.run_id)
        progress.say(f"Run {first.run_id} promotes this release already: following it.")
        return first, compiled.tasks
    return started, compiled.tasks


def _running(kubeflow: Kubeflow, experiment_id: str, mine: str) -> Any | None:
    found = [
        run for run in kubeflow.active_runs(experiment_id) if runs.key_of(run) == mine and run.state != "CANCELING"
    ]
    return min(found, key=lambda run: (run.created_at, run.run_id), default=None)


def _outcome(mine: list[Entry], view: RunView, is_champion: bool) -> tuple[Outcome, Entry | None]:
    """The verdict, and the journal's entry that says it; the last decision of the run counts."""
    for entry in reversed(mine):
        if entry.kind == "promotion":
            return "promoted", entry
        if entry.kind == "rollout" and entry.decision in ROLLOUT_OUTCOMES:
            return ROLLOUT_OUTCOMES[entry.decision], entry
        if entry.kind == "rollout" and entry.decision == "started" and entry.evidence.get("driver") == "controller":
            return "handed_over", entry
        if entry.kind == "gate" and entry.decision != "pass":
            return "gate_failed", entry
    if view.state == "CANCELED":
        return "canceled", None
    if view.state == "SUCCEEDED" and is_champion:
        return "already_champion", None
    return "run_failed", None


def _without_entry(view: RunView, outcome: Outcome) -> str:
    if outcome == "already_champion":
        return "The release is the champion already."
    if view.state == "SUCCEEDED":
        return f"Run {view.run_id} ended well, but the journal has no decision with its id: look at its tasks' logs."
    return view.sentence()


def _gate_evidence(mine: list[Entry]) -> dict[str, Any]:
    gates = [entry for entry in mine if entry.kind == "gate"]
    return {"gate": gates[-1].decision, **gates[-1].evidence} if gates else {}
