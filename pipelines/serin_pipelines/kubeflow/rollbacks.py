"""Back to the release before the champion: the journal first, then the gateway's traffic, then MLflow's aliases.

Each step can be done again: with ``from_release`` a second call finds the journal's entry, and moves only the traffic
that has not been moved.  MLflow comes last and is never waited for before: an emergency does not depend on it.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from serin.core.context import stage_context
from serin.core.errors import InputError, SerinError, ServingError
from serin.core.gateway_client import TOKEN_VARIABLE, GatewayClient
from serin.core.journal import Journal
from serin.core.storage import storage_for
from serin.core.tracking import prepare_database
from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow.promotion import require_store
from serin_pipelines.records import new_run_id

MIN_PREFIX = 8


class Rollback(BaseModel):
    """How a rollback ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    endpoint: str
    verdict: Literal["rolled_back", "already_rolled_back"]
    champion: str
    """Release id that serves now."""
    rolled_back: str
    """Release id that served before."""
    traffic: Literal["moved", "there already", "no gateway"]
    aliases: str
    """moved, off, or why they are not moved yet."""
    reason: str
    approved_by: str


def roll_back(environment: Environment, *, reason: str, approved_by: str, from_release: str = "") -> Rollback:
    """Make the release before the champion the champion again, and let it have all traffic.

    Args:
        environment: where.
        reason: why, for the journal.
        approved_by: who says so, for the journal.
        from_release: roll back only while this release is the champion (its id, or 8 digits at least).

    Raises:
        InputError: there is no previous release, or ``from_release`` never served.
        ServingError: the journal stands, and the gateway could not be told.
    """
    require_store(environment)
    journal = Journal(storage_for(environment.store_uri), environment.endpoint)
    before = journal.champion()
    lineage_id = new_run_id()
    done = bool(from_release) and not _serves(journal, from_release)
    if not done:
        _write(environment, reason, approved_by, lineage_id, str(before) if from_release else "")
    champion = journal.champion()
    assert champion is not None  # a journal that was rolled back has one
    traffic = _move(environment, champion)
    return Rollback(
        environment=environment.name,
        endpoint=environment.endpoint,
        verdict="already_rolled_back" if done else "rolled_back",
        champion=champion,
        rolled_back=_whole(journal, from_release) if done else str(before),
        traffic=traffic,
        aliases=_mirror(environment, lineage_id),
        reason=reason,
        approved_by=approved_by,
    )


def _serves(journal: Journal, release: str) -> bool:
    """Whether a release is the champion now.

    Raises:
        InputError: it never was.
    """
    return _whole(journal, release) == journal.champion()


def _whole(journal: Journal, release: str) -> str:
    known = sorted({entry.release_id for entry in journal.find(kind="promotion")})
    found = [one for one in known if len(release) >= MIN_PREFIX and one.startswith(release)]
    if len(found) != 1:
        raise InputError(
            f"{release!r} is no release that has served endpoint {journal.endpoint!r}: 'serin release list' shows them."
        )
    return found[0]


def _write(environment: Environment, reason: str, approved_by: str, lineage_id: str, serving: str) -> None:
    from serin.deploy.rollout import rollback

    with _stage(environment, "", lineage_id) as context:
        rollback(approved_by=approved_by, reason=reason, context=context, serving=serving)


def _move(environment: Environment, champion: str) -> Literal["moved", "there already", "no gateway"]:
    if not environment.gateway_url:
        return "no gateway"
    try:
        gateway = GatewayClient.from_environment(environment.gateway_url)
        state = gateway.state()
        if state.get("champion") == champion and not state.get("candidate"):
            return "there already"
        gateway.set_rollout(champion=champion)
    except ServingError as error:
        raise ServingError(
            f"The journal says {champion[:12]} and stands, but traffic still goes where it went ({_clause(error)}): "
            f"set {TOKEN_VARIABLE}, see that {environment.gateway_url} answers, and run the same command again with "
            "--from and the release that is to go."
        ) from error
    return "moved"


def _mirror(environment: Environment, lineage_id: str) -> str:
    from serin.deploy.rollout import mirror_aliases

    if not environment.tracking_uri:
        return "off"
    try:
        prepare_database(environment.tracking_uri)
        with _stage(environment, environment.tracking_uri, lineage_id) as context:
            mirror_aliases(context)
    except SerinError as error:
        return f"not moved: {error}"
    except Exception as error:
        # MLflow's own errors are many, and its aliases only mirror what the journal has already
        return f"not moved: MLflow at {environment.tracking_uri} fails ({type(error).__name__})."
    return "moved"


def _stage(environment: Environment, tracking_uri: str, lineage_id: str) -> Any:
    return stage_context(
        "deploy",
        store_uri=environment.store_uri,
        tracking_uri=tracking_uri,
        lineage_id=lineage_id,
        endpoint=environment.endpoint,
    )


def _clause(error: Exception) -> str:
    return str(error).rstrip(".")
