"""A controller that stands by: it carries out the rollouts that tasks hand over, and ends those that lost theirs."""

import logging
from collections.abc import Callable

from serin.core.context import StageContext
from serin.core.errors import FencedError, SerinError, UnavailableError
from serin.core.kubernetes import Clock
from serin.core.rollouts import RolloutRecord, command, last_rollout
from serin.deploy.controller import WALL_CLOCK
from serin.deploy.lease import Lease
from serin.deploy.rollout import Rollout, carry_on

logger = logging.getLogger(__name__)

FOLLOW_S = 5.0
"""Between two looks at the journal."""
ORPHAN_S = 300.0
"""A task's rollout that nobody has driven for so long is taken over and ended."""
CONTROLLER = "standing controller"


def follow(
    context: StageContext,
    *,
    clock: Clock = WALL_CLOCK,
    stopped: Callable[[], bool] = lambda: False,
    drive: Callable[[str, Lease, StageContext], Rollout] = carry_on,
) -> None:
    """Carry out whatever rollout of an endpoint needs a controller, one after another; returns once ``stopped``.

    Several may follow one endpoint: the lease lets one act, and another takes over when that one is gone.  A task's
    own rollout is left to its task; when nobody has held the lease for ``ORPHAN_S``, the task was killed or its run
    cancelled, and the rollout is aborted, so that the traffic goes back to the champion.

    Args:
        context: the endpoint's.
        clock: time.
        stopped: asked between two looks.
        drive: carries a rollout on; see ``carry_on``.
    """
    alone_since: float | None = None
    while not stopped():
        try:
            record = last_rollout(context.journal)
            if record is None or not _needs_somebody(record):
                alone_since = None
            elif _mine(record):
                attend(record, context, drive=drive)
            elif Lease(context.store.storage, context.endpoint).holder() is not None:
                alone_since = None
            else:
                alone_since = clock.now() if alone_since is None else alone_since
                if clock.now() - alone_since > ORPHAN_S:
                    _abort(record, context, drive)
                    alone_since = None
        except FencedError as error:
            logger.info("Another controller goes on: %s", error)
        except SerinError as error:
            logger.error("The rollout could not be carried on, and it is tried again: %s", error)
        clock.sleep(FOLLOW_S)


def attend(
    record: RolloutRecord,
    context: StageContext,
    *,
    drive: Callable[[str, Lease, StageContext], Rollout] = carry_on,
) -> Rollout | None:
    """Drive a rollout to its end, where nobody else does; None where somebody does."""
    lease = Lease(context.store.storage, context.endpoint)
    try:
        lease.take()
    except UnavailableError:
        return None
    try:
        return drive(record.rollout_id, lease, context)
    finally:
        lease.give_back()


def _abort(record: RolloutRecord, context: StageContext, drive: Callable[[str, Lease, StageContext], Rollout]) -> None:
    why = f"Its task ended {ORPHAN_S:g} s ago without a decision."
    command(context.journal, "abort", approved_by=CONTROLLER, reason=why)
    attend(record, context, drive=drive)


def _needs_somebody(record: RolloutRecord) -> bool:
    return not record.over or (record.state == "held" and record.asked is not None)


def _mine(record: RolloutRecord) -> bool:
    """Whether it was handed over, or a person decided it after its task had ended."""
    return record.plan.get("driver") == "controller" or record.asked is not None
