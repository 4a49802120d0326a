"""The standing controller: which rollouts it takes, which it leaves, and when it ends one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rollout_worlds import CANDIDATE, CHAMPION, World
from worlds import context_of

from serin.core.context import StageContext
from serin.core.kubernetes import Clock
from serin.core.rollouts import command, last_rollout
from serin.deploy.controller import begin
from serin.deploy.lease import Lease
from serin.deploy.rollout import Rollout, verdict
from serin.deploy.standing import FOLLOW_S, ORPHAN_S, attend, follow


class Standing:
    """A store on disk, a standing controller whose time is counted in looks, and a world that it drives in."""

    def __init__(self, folder: Path) -> None:
        self.context = context_of(str(folder), "deploy")
        self.world = World(storage=self.context.store.storage)
        self.driven: list[str] = []

    def start(self, driver: str) -> str:
        with Lease(self.world.storage, "assistant", host="task", renew=False) as lease:
            plan = {"driver": driver, "config": self.world.config.dump()}
            return begin(self.world.journal, lease, candidate=CANDIDATE, champion=CHAMPION, plan=plan)

    def drive(self, rollout_id: str, lease: Lease, context: StageContext) -> Rollout:
        self.driven.append(rollout_id)
        self.world.controller(rollout_id, lease).drive()
        found = verdict(rollout_id, context)
        assert found is not None
        return found

    def follow(self, looks: int, each: Callable[[int], None] = lambda look: None) -> None:
        seconds = [0.0]

        def sleep(by: float) -> None:
            seconds[0] += by

        def stopped() -> bool:
            look = round(seconds[0] / FOLLOW_S)
            each(look)
            return look >= looks

        follow(self.context, clock=Clock(now=lambda: seconds[0], sleep=sleep), stopped=stopped, drive=self.drive)


@pytest.fixture
def standing(tmp_path: Path) -> Standing:
    return Standing(tmp_path)


def test_a_rollout_that_was_handed_over_is_carried_out(standing: Standing) -> None:
    rollout_id = standing.start("controller")
    assert verdict("", standing.context) is None
    standing.follow(3)
    assert standing.driven == [rollout_id]
    found = verdict(rollout_id, standing.context)
    assert found is not None
    assert found.decision.outcome == "promote"
    assert standing.world.journal.champion() == CANDIDATE


def test_a_tasks_rollout_is_left_to_its_task_and_ended_once_that_is_gone(standing: Standing) -> None:
    rollout_id = standing.start("task")
    looks = int(ORPHAN_S / FOLLOW_S)
    held = Lease(standing.world.storage, "assistant", host="task", renew=False)
    held.take()

    def task_dies_later(look: int) -> None:
        if look == looks:
            held.give_back()

    standing.follow(2 * looks - 1, task_dies_later)
    assert standing.driven == []
    standing.follow(looks + 3)
    assert standing.driven == [rollout_id]
    record = last_rollout(standing.world.journal)
    assert record is not None
    assert record.verdict is not None
    assert (record.state, record.verdict.approved_by) == ("rolled_back", "standing controller")


def test_a_held_rollout_is_decided_when_somebody_asks(standing: Standing) -> None:
    config = standing.world.config.model_copy(update={"max_sessions": 20, "on_inconclusive": "hold"})
    standing.world.config, standing.world.outcomes = config, ["hold"] * 3
    standing.start("controller")
    standing.follow(2)
    assert last_rollout(standing.world.journal).state == "held"  # type: ignore[union-attr]
    standing.follow(2)
    assert len(standing.driven) == 1, "a held rollout needs nobody"
    command(standing.world.journal, "promote", approved_by="ada", reason="")
    standing.follow(2)
    assert last_rollout(standing.world.journal).state == "promoted"  # type: ignore[union-attr]


def test_two_do_not_drive_one_rollout(standing: Standing) -> None:
    standing.start("controller")
    other = Lease(standing.world.storage, "assistant", host="other", renew=False)
    other.take()
    record = last_rollout(standing.world.journal)
    assert record is not None
    assert attend(record, standing.context, drive=standing.drive) is None
    assert standing.driven == []
