"""The controller: what it writes and serves, in which order, and that it can be ended at any line."""

import pytest
from rollout_worlds import CANDIDATE, CHAMPION, CONFIG, OTHER, Killed, World, killed_at, without_shadow

from serin.core.errors import FencedError, ServingError, UnavailableError
from serin.core.rollouts import command, last_rollout
from serin.deploy.lease import LEASE_S, Lease
from serin.deploy.traffic_providers.base import DriftError, Split

WHOLE = [
    "promotion: promoted", "rollout: started", "rollout: warmup", "rollout: shadow", "rollout: advance",
    "rollout: advance", "rollout: promote", "promotion: promoted", "rollout: promoted",
]  # fmt: skip


def test_a_good_candidate_goes_through_every_state_to_the_promotion() -> None:
    world = World()
    world.drive()
    record = world.check()
    assert world.decisions() == WHOLE
    assert record.state == "promoted"
    shares = [(told.split.percent, told.split.mirror_percent) for told in world.endpoint.told if told.split.candidate]
    assert shares == [(0.0, 0.0), (0.0, 100.0), (10.0, 0.0), (50.0, 0.0)]


def test_harm_takes_the_traffic_back() -> None:
    world = World(outcomes=["advance", "rollback"])
    assert world.drive().state == "rolled_back"
    verdict = world.check().verdict
    assert verdict is not None
    assert verdict.reasons == ("The script says rollback.",)
    assert world.decisions()[-2:] == ["rollout: rollback", "rollout: rolled back"]


def test_an_undecided_rollout_is_held_and_a_person_can_decide_it_later() -> None:
    config = CONFIG.model_copy(update={"max_sessions": 20, "on_inconclusive": "hold"})
    world = World(config=config, outcomes=["hold"] * 9)
    rollout_id, held = world.start()
    assert world.controller(rollout_id, held).drive().state == "held"
    world.check()
    command(world.journal, "promote", approved_by="ada", reason="looked at it")
    world.controller(rollout_id, world.lease()).drive()
    assert world.check().state == "promoted"
    promotion = world.journal.find(kind="promotion")[-1]
    assert promotion.approved_by == "ada"
    assert "looked at it" in promotion.reasons


def test_a_pause_keeps_the_share_until_somebody_ends_it_and_harm_still_counts() -> None:
    world = World(outcomes=["hold", "hold", "rollback"])

    def pause(now: World) -> None:
        if now.rounds == 4:
            command(now.journal, "pause", approved_by="ada", reason="")

    world.on_round = pause
    assert world.drive().state == "rolled_back"
    assert last_rollout(world.journal).paused_by == "ada"  # type: ignore[union-attr]


def test_an_abort_names_who_asked_for_it() -> None:
    world = World(outcomes=["hold"] * 9)
    world.on_round = lambda now: (
        command(now.journal, "abort", approved_by="ada", reason="wrong release") and None if now.rounds == 3 else None
    )
    assert world.drive().state == "rolled_back"
    verdict = world.check().verdict
    assert verdict is not None
    assert (verdict.approved_by, verdict.reasons[0]) == ("ada", "ada aborted the rollout.")


def test_a_person_can_promote_without_the_judge() -> None:
    world = World(outcomes=["hold"] * 9)
    world.on_round = lambda now: (
        command(now.journal, "promote", approved_by="ada", reason="") and None if now.rounds == 2 else None
    )
    assert world.drive().state == "promoted"
    assert world.journal.find(kind="promotion")[-1].approved_by == "ada"


def test_another_champion_in_the_middle_ends_the_rollout() -> None:
    world = World(outcomes=["hold"] * 9)
    world.on_round = lambda now: (
        now.rounds == 3
        and now.journal.append(  # type: ignore[assignment,return-value]
            "promotion", release_id=OTHER, decision="promoted"
        )
    )
    assert world.drive().state == "rolled_back"
    assert world.endpoint.split == Split(OTHER, salt=last_rollout(world.journal).rollout_id)  # type: ignore[union-attr]


def test_a_champion_that_changes_at_the_very_promotion_wins() -> None:
    world = World()
    promote = world.journal.append

    def overtaken(kind: str, **fields: object) -> object:
        if kind == "promotion":
            promote("promotion", release_id=OTHER, decision="promoted")
        return promote(kind, **fields)  # type: ignore[arg-type]

    rollout_id, held = world.start()
    controller = world.controller(rollout_id, held)
    controller._desk.journal.append = overtaken  # type: ignore[method-assign,assignment]
    assert controller.drive().state == "rolled_back"
    assert world.endpoint.split is not None
    assert world.endpoint.split.champion == OTHER


@pytest.mark.parametrize("problem", ["failed", "refuses", "unready"])
def test_a_candidate_that_does_not_run_is_turned_away(problem: str) -> None:
    world = World()
    world.endpoint.failed = problem == "failed"
    world.endpoint.refuses = "Its model cannot be read." if problem == "refuses" else ""
    world.endpoint.ready = problem != "unready"
    assert world.drive().state == "rolled_back"
    reason = world.check().verdict.reasons[0]  # type: ignore[union-attr]
    assert {"failed": "does not run", "refuses": "cannot be read", "unready": "not ready within 600 s"}[
        problem
    ] in reason
    assert not [told for told in world.endpoint.told if told.split.percent]


def test_a_promotion_that_is_refused_stays_open_and_is_carried_out_by_the_next() -> None:
    world = World()

    def refuse(now: World) -> None:
        if now.rounds == 3:
            now.endpoint.refuses, now.endpoint.refuses_alone = "Its disk is full.", True

    world.on_round = refuse
    rollout_id, held = world.start()
    with pytest.raises(ServingError, match="disk is full"):
        world.controller(rollout_id, held).drive()
    record = last_rollout(world.journal)
    assert record is not None
    assert (record.state, world.journal.champion()) == ("promoting", CANDIDATE)
    world.endpoint.refuses = ""
    world.controller(rollout_id, world.lease("two")).drive()
    assert world.check().state == "promoted"


def test_traffic_that_somebody_edited_is_left_alone_and_said() -> None:
    world = World(outcomes=["hold"] * 9)
    world.on_round = lambda now: setattr(now.endpoint, "edited", now.rounds == 3)
    rollout_id, held = world.start()
    with pytest.raises(DriftError, match="somebody edited it"):
        world.controller(rollout_id, held).drive()
    record = last_rollout(world.journal)
    assert record is not None
    assert record.state == "aborted"
    assert world.endpoint.told[-1].split.percent == 50.0, "it was touched after the edit"


def test_an_endpoint_that_is_away_is_waited_for_and_told_again() -> None:
    world = World(outcomes=["hold", "hold"])

    def restart(now: World) -> None:
        if now.rounds == 3:
            now.endpoint.restart()
            now.endpoint.down_for = 20

    world.on_round = restart
    assert world.drive().state == "promoted"
    world.check()


def test_an_endpoint_that_stays_away_ends_the_controller_and_leaves_the_rollout_open() -> None:
    world = World()
    rollout_id, held = world.start()
    world.endpoint.down_for = 10_000
    with pytest.raises(UnavailableError, match="did not answer for 300 s"):
        world.controller(rollout_id, held).drive()
    world.endpoint.down_for = 0
    world.controller(rollout_id, world.lease("two")).drive()
    assert world.check().state == "promoted"


def test_a_controller_that_slept_through_its_lease_stops_at_its_first_word() -> None:
    world = World(outcomes=["hold"] * 3)

    def overtake(now: World) -> None:
        if now.rounds == 3:
            now.on_round = None
            now.controller(rollout_id, now.lease("two")).drive()

    rollout_id, held = world.start()
    world.on_round = overtake
    with pytest.raises(FencedError):
        world.controller(rollout_id, held).drive()
    assert world.check().state == "promoted"
    assert world.decisions().count("rollout: promote") == 1


@pytest.mark.parametrize("config", [CONFIG, without_shadow()], ids=["shadow", "no shadow"])
@pytest.mark.parametrize("outcomes", [[], ["rollback"]], ids=["promoted", "rolled back"])
def test_killed_at_any_line_it_is_carried_to_the_same_end_by_the_next(config: object, outcomes: list[str]) -> None:
    def run(line: int) -> tuple[World, list[int]]:
        world = World(config=config, outcomes=list(outcomes))  # type: ignore[arg-type]
        rollout_id, held = world.start()
        try:
            with killed_at(line, world) as ran:
                world.controller(rollout_id, held).drive()
        except Killed:
            world.outcomes = list(outcomes)
            world.controller(rollout_id, world.lease("two")).drive()
        return world, ran

    world, changes = run(-1)
    end = world.check().state
    assert len(changes) > 200
    telling = [
        line for line, (before, now) in enumerate(zip([-1, *changes], changes, strict=False), 1) if now != before
    ]
    assert len(telling) > 20
    for line in telling:
        world, _ = run(line)
        assert world.check().state == end, f"another end after line {line}"


def test_two_kills_in_a_row_lead_to_the_same_end() -> None:
    for line in range(1, 400, 13):
        world = World()
        rollout_id, held = world.start()
        for host, at in (("one", line), ("two", 401 - line), ("three", -1)):
            try:
                with killed_at(at, world):
                    world.controller(rollout_id, held if host == "one" else world.lease(host)).drive()
            except Killed:
                continue
        assert world.check().state == "promoted"


def test_nobody_takes_a_lease_that_is_held() -> None:
    world = World()
    _, held = world.start()
    with pytest.raises(UnavailableError, match="Another controller"):
        Lease(world.storage, "assistant", host="two", clock=world.now, renew=False).take()
    assert held.fence == 1
    world.offset_s += LEASE_S + 1
    later = Lease(world.storage, "assistant", host="two", clock=world.now, renew=False)
    later.take()
    assert later.fence == 2
    with pytest.raises(FencedError, match="went to two"):
        held.check()


def test_nothing_is_journalled_under_an_old_fence() -> None:
    world = World()
    world.start()
    later = world.lease("two")
    world.journal.append("rollout", release_id=CANDIDATE, decision="resumed", evidence={"fence": later.fence}, fence=2)
    with pytest.raises(FencedError):
        world.journal.append("rollout", release_id=CANDIDATE, decision="promote", evidence={"fence": 1}, fence=1)
    assert world.journal.champion() == CHAMPION
