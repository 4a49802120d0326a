"""A rollout's page: what it says and draws, from the real judge's looks at made-up traffic."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import inf, log10
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import DARK, LIGHT, Outline, seen_by_a_browser, stands_alone

from serin.core.events import EndpointEvent
from serin.core.journal import Entry
from serin.core.rollouts import RolloutRecord, rollouts
from serin.deploy.config import DeployConfig
from serin.deploy.controller import _glance
from serin.deploy.evidence import Evidence, evidence_of
from serin.deploy.history import MOST_LOOKS, Glance, History
from serin.deploy.page import canary_page
from serin.deploy.page_charts import Mark, Scale, duration, placed_marks, rough, time_names
from serin.deploy.page_metrics import MOST_POINTS, TITLES, e_scale, power, thinned

CHAMPION, CANDIDATE = "a" * 64, "b" * 64
BEGAN = datetime(2026, 11, 3, 14, 3, 22, tzinfo=UTC)
CONFIG = DeployConfig(steps_percent=(10.0, 25.0, 50.0), requests="users", settle_s=0, max_sessions=4000)
EVIL = "<script>alert('x')</script> & more"


class Story:
    """A rollout whose clock is ours: traffic is made up, and the real judge looks at it."""

    def __init__(self, config: DeployConfig = CONFIG, *, slower: float = 1.0, errors: float = 0.0) -> None:
        self.config, self.slower, self.errors = config, slower, errors
        self.now, self.events, self.entries = BEGAN, list[EndpointEvent](), list[Entry]()
        self.history = History(requests=312)
        self.rng = np.random.default_rng(5)
        plan = {"champion": CHAMPION, "approved_by": "grace"}
        self.journal("started", **plan)

    @property
    def record(self) -> RolloutRecord:
        return rollouts(self.entries)[0]

    @property
    def page(self) -> str:
        return canary_page(self.record, self.history, self.entries, self.config)

    def journal(self, what: str, *reasons: str, kind: str = "rollout", by: str = "", **evidence: Any) -> None:
        self.entries.append(
            Entry(
                number=len(self.entries) + 7,
                time=self.now.isoformat(timespec="milliseconds"),
                kind=kind,
                release_id=CANDIDATE,
                decision=what,
                reasons=reasons,
                approved_by=by,
                policy_version="c0ffee",
                evidence={"rollout_id": "r1", **evidence},
                previous_hash="",
                hash="",
            )
        )

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def advance(self, step: int, *reasons: str) -> None:
        self.journal("advance", *reasons, step=step, share_percent=self.config.shares[step])

    def look(self, *, sessions: int = 20, every_s: float = 30.0) -> Evidence:
        """Let sessions pass, then look at all of them."""
        shadow = self.record.state == "shadow"
        share = 0.0 if shadow else self.config.shares[self.record.step] / 100
        for _ in range(sessions):
            self.wait(every_s / sessions)
            name = f"s{len(self.events)}"
            self.ask(name, shadow=shadow, of_candidate=bool(self.rng.random() < share))
        evidence = evidence_of(self.record, self.events, self.config, restarts=0, now=self.now)
        self.history = self.history.with_glance(_glance(self.record, 100 * share, evidence, self.now))
        return evidence

    def ask(self, session: str, *, shadow: bool, of_candidate: bool) -> None:
        tracks = ("champion", "shadow") if shadow else ("candidate",) if of_candidate else ("champion",)
        for track in tracks:
            mine = track != "champion"
            ttft = float(np.exp(self.rng.normal(5.0, 0.35))) * (self.slower if mine else 1.0)
            failed = bool(self.rng.random() < (self.errors if mine else 0.003))
            self.events.append(
                EndpointEvent(
                    trace_id=f"{len(self.events):032x}",
                    time=self.now.isoformat(timespec="milliseconds"),
                    session_id=session,
                    endpoint="assistant",
                    release_id=CANDIDATE if mine else CHAMPION,
                    track=track,
                    status=500 if failed else 200,
                    ttft_ms=ttft,
                    latency_ms=ttft * 4,
                    completion_tokens=int(self.rng.integers(20, 90)),
                    finish_reason="stop",
                    support_score=float(np.clip(self.rng.normal(0.8, 0.1), 0, 1)),
                )
            )

    def opened(self) -> "Story":
        """Up to the first share."""
        self.wait(1)
        self.journal("warmup")
        self.wait(20)
        self.journal("shadow")
        for _ in range(4):
            self.look(sessions=5)
        self.advance(0, "No harm is seen so far.")
        return self

    def grown(self, looks: int, *, sessions: int = 20) -> Evidence:
        """Up to the last share, with so many looks at each, or until the judge decides."""
        evidence = Evidence()
        for step in range(len(self.config.shares)):
            for _ in range(looks):
                evidence = self.look(sessions=sessions)
                if evidence.decision.outcome in ("rollback", "promote"):
                    return evidence
            if step + 1 < len(self.config.shares):
                self.advance(step + 1, *evidence.decision.reasons)
        return evidence

    def decided(self, evidence: Evidence) -> "Story":
        """The judge's word, and that it is carried out."""
        decision = evidence.decision
        self.journal(decision.outcome, *decision.reasons, **decision.evidence)
        self.wait(1)
        self.journal({"rollback": "rolled back", "promote": "promoted", "hold": "held"}[decision.outcome])
        return self


def check(page: str) -> Outline:
    """What is true of every page; returns what it is made of."""
    outline = stands_alone(page)
    assert not re.search(r"\b(nan|inf|None)\b", outline.text.replace("None of", ""))
    assert not re.search(r'="[^"]*(nan|inf)\b', page)
    assert len(page) < 300_000
    return outline


@pytest.fixture(scope="module")
def promoted() -> Story:
    story = Story().opened()
    return story.decided(story.grown(2, sessions=150))


@pytest.fixture(scope="module")
def rolled_back() -> Story:
    story = Story(slower=1.6, errors=0.06).opened()
    return story.decided(story.grown(40))


@pytest.fixture(scope="module")
def paused() -> Story:
    story = Story().opened()
    story.look()
    story.advance(1, EVIL)
    story.look()
    story.journal("pause", "lunch", kind="command", by="ada <ada@x>")
    story.look()
    return story


def test_a_promotion_says_so_first_and_on_which_proofs(promoted: Story) -> None:
    outline = check(promoted.page)
    said = outline.text
    assert "Release bbbbbbbbbbbb is promoted" in said
    verdict = promoted.record.verdict
    assert verdict is not None
    assert all(reason in said for reason in verdict.reasons)
    assert "canary judge" in said
    assert "grace" in said
    assert "aaaaaaaaaaaa" in said
    assert "c0ffee" in said
    assert '<div class="verdict soft-good">' in promoted.page
    shares = outline.titles[0]
    assert re.findall(r"(\d+)% from", shares) == ["10", "25", "50", "100"]
    assert said.count(" no harm ") >= 6  # errors, ttft and support: a card and a row each


def test_a_rollback_shows_what_decided_first(rolled_back: Story) -> None:
    outline = check(rolled_back.page)
    verdict = rolled_back.record.verdict
    assert verdict is not None
    assert verdict.decision == "rollback"
    assert "is rolled back" in outline.text
    assert '<div class="verdict soft-bad">' in rolled_back.page
    assert outline.text.index(verdict.reasons[0]) < outline.text.index("Times count")
    decided = verdict.reasons[0].split()[0]
    first = re.findall(r"<h3[^>]*>([^<]+)</h3>", rolled_back.page)[0]
    assert first == TITLES[decided]
    assert " worse " in outline.text
    e_value = rolled_back.history.glances[-1].e_value
    assert e_value is not None
    assert e_value > 20
    assert any(f": {e_value:.3g}; rolls back at 20.4" in title for title in outline.titles)


def test_e_values_are_drawn_against_their_threshold_on_a_log_axis(rolled_back: Story) -> None:
    """The last look lies above the line, as far as its logarithm says; the shadow has a line of its own."""
    picture = rolled_back.page.split("e-value of all metrics together, log axis")[1].split("</svg></figure>")[0]
    shadow, steps = (float(y) for y in re.findall(r'class="limit"[^>]*y1="([\d.]+)"', picture))
    last = float(re.findall(r'class="mark" cx="100.0%" cy="([\d.]+)"', picture)[0])
    glance = rolled_back.history.glances[-1]
    assert glance.e_value is not None
    per_ten = (steps - shadow) / (log10(1000) - log10(1 / 0.049))
    assert steps - last == pytest.approx(per_ten * log10(glance.e_value * 0.049), abs=0.3)
    assert ">1000<" in picture
    assert ">0.1<" in picture


def test_an_open_rollout_loads_itself_again_and_says_who_paused_it(paused: Story, promoted: Story) -> None:
    outline = check(paused.page)
    assert "serves 25% of sessions" in outline.text
    assert "Under way at 25%, step 2 of 3, paused by ada <ada@x>" in outline.text
    assert "until somebody resumes" in outline.text
    assert "Shaded: paused." in outline.text
    assert '<meta http-equiv="refresh" content="10">' in paused.page
    assert "http-equiv" not in promoted.page


def test_what_people_and_models_wrote_is_text(paused: Story) -> None:
    assert EVIL in check(paused.page).text
    assert "ada &lt;ada@x&gt;" in paused.page
    assert "<ada" not in paused.page


def test_an_open_rollout_says_what_it_waits_for() -> None:
    story = Story(CONFIG.model_copy(update={"steps_percent": (50.0,)})).opened()
    assert "The next look decides" in check(story.page).text or "promotion needs" in check(story.page).text
    story.look(sessions=30)
    said = check(story.page).text
    assert "A promotion needs 30 sessions on each side; the smaller has" in said
    assert "Still to be proven to be within the limit: " in said
    story.journal("abort", kind="command", by="ada")
    assert "ada asked to abort; it is carried out at the next turn." in check(story.page).text


def test_a_page_is_whole_before_the_first_look() -> None:
    story = Story()
    assert "is about to be rolled out" in check(story.page).text
    story.journal("warmup")
    outline = check(story.page)
    assert "is starting" in outline.text
    assert "Evidence of harm" not in outline.text
    assert outline.pictures == 2  # the timeline, wide and narrow
    story.journal("shadow")
    story.look(sessions=5)
    said = check(story.page).text
    assert "rolls back at 1,000" in said


def test_a_held_and_an_aborted_rollout_say_what_is_open(paused: Story) -> None:
    held = Story()
    held.journal("hold", "Undecided in time.")
    held.journal("held")
    said = check(held.page).text
    assert "the champion serves alone until somebody decides" in said
    assert "Undecided in time." in said
    held.journal("aborted", "The process that ran it ended without a decision.")
    said = check(held.page).text
    assert "was aborted" in said
    assert "not known" in said  # nobody looked after the traffic


def test_a_lost_history_is_made_up_for_by_the_journal(rolled_back: Story) -> None:
    page = canary_page(rolled_back.record, History(), rolled_back.entries, CONFIG)
    outline = check(page)
    assert "after 1 look" in outline.text
    assert "Time to first token" in outline.text
    assert "Restarts of the candidate's engine" in outline.text


def test_metrics_that_come_later_and_ends_that_are_not_known_are_drawn() -> None:
    story = Story().opened()
    known: dict[str, Any] = {"kind": "log_mean", "estimate": None, "lower": 0.0, "upper": 5.18471e21, "e_value": 0.0}
    known |= {"e_threshold_alone": 61.7, "tolerated": 1.1, "limit": 1.4, "proven": False}
    rate: dict[str, Any] = {
        "kind": "rate",
        "estimate": 0.01,
        "lower": None,
        "upper": None,
        "e_value": None,
        "limit": None,
    }
    one = Glance(story.now.isoformat(), "step", 10.0, "advance", None, None, 1, 1, {"ttft": known})
    story.wait(5)
    later = {"ttft": {**known, "estimate": 1.2}, "<own>": rate}
    two = replace(one, time=story.now.isoformat(), metrics=later, e_value=0.0, e_threshold=22.0)
    story.history = replace(story.history, glances=(one, two))
    said = check(story.page).text
    assert "1.20 times the champion’s (no bound to no bound)" in said
    assert "<own>" in said
    assert "+1.0 points" in said
    assert "only reported" in said


def test_a_long_rollout_stays_small(promoted: Story) -> None:
    story = Story().opened()
    last = promoted.history.glances[-1]
    names = [f"metric {number}" for number in range(14)]
    for _ in range(MOST_LOOKS):
        story.wait(300)
        metrics = {name: {**last.metrics["ttft"], "e_value": float(story.rng.lognormal())} for name in names}
        story.history = story.history.with_glance(replace(last, time=story.now.isoformat(), metrics=metrics))
    for who in ("ada", "lin") * 20:
        story.journal("pause", kind="command", by=who)
        story.wait(60)
        story.journal("resume", kind="command", by=who)
    page = story.page
    check(page)
    assert page.count("<h3") == 14


def test_the_settings_say_what_was_asked(promoted: Story) -> None:
    said = check(promoted.page).text
    assert "10%, 25%, 50%" in said
    assert "0.05, of which the shadow has 0.001" in said
    assert "after 4000 sessions: rollback" in said
    assert "ratio of geometric means" in said


@pytest.mark.parametrize("name", ["promoted", "rolled_back", "paused"])
def test_a_page_is_whole_after_every_entry(name: str, request: pytest.FixtureRequest) -> None:
    story: Story = request.getfixturevalue(name)
    for number in range(1, len(story.entries) + 1):
        entries = story.entries[:number]
        glances = tuple(one for one in story.history.glances if one.time <= entries[-1].time)
        record = rollouts(entries)[0]
        page = canary_page(record, replace(story.history, glances=glances), entries, CONFIG)
        check(page)
        assert ("http-equiv" in page) is not record.over


# charts


def test_a_scale_places_values_and_names_round_ones() -> None:
    assert Scale(0, 10).place(2.5) == 0.25
    assert Scale(0.01, 100, log=True).place(1) == 0.5
    assert [Scale(1, 2, log=True).place(value) for value in (0.0, -inf, inf, 1.0)] == [0, 0, 1, 0]
    assert Scale(0.01, 100, log=True).ticks() == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert Scale(0.3, 4, log=True).ticks() == pytest.approx([0.5, 1, 2])
    assert Scale(0, 51).ticks() == [0, 20, 40]
    for low, high in ((-3.0, 7.0), (0.97, 1.04), (0.0, 1.02), (-80.0, 75.0)):
        assert 2 <= len(Scale(low, high).ticks()) <= 6


def test_an_axis_of_e_values_holds_them_and_the_threshold_within_reason() -> None:
    y = e_scale([0.0, 1e-30, 40.0], 22.0)
    assert (y.low, y.log) == (1e-3, True)
    assert y.high >= 110
    assert e_scale([1e80], 22.0).high == 1e15
    assert [power(value) for value in (0.01, 1, 1000, 1e6, 1e12)] == ["0.01", "1", "1000", "10⁶", "10¹²"]


def test_times_are_named_in_round_units() -> None:
    assert [text for _, text in time_names(Scale(0, 95), 6)] == ["0 s", "30 s", "1 min", "1 min 30 s"]
    assert [text for _, text in time_names(Scale(3000, 90000), 6)] == ["6 h", "12 h", "18 h", "1 d"]
    assert [duration(seconds) for seconds in (0.25, 75, 3600, 90000)] == ["0.25 s", "1 min 15 s", "1 h", "1 d 1 h"]
    assert [rough(seconds) for seconds in (0, 41, 412, 5400, 200000)] == ["0 s", "41 s", "6.9 min", "1.5 h", "2.3 d"]


def test_names_of_marks_never_meet() -> None:
    x, width, rng = Scale(0, 100), 300, np.random.default_rng(2)
    for number in (1, 5, 12, 40):
        times = sorted(float(time) for time in rng.uniform(0, 100, number))
        placed = placed_marks([Mark(time, f"paused by {'x' * int(time / 10)}") for time in times], x, width)
        spans: dict[int, list[tuple[float, float]]] = {}
        for mark, lane, to_left in placed:
            at, reach = mark.at_s * width / 100, len(mark.name) * 6.1
            spans.setdefault(lane, []).append((at - reach, at) if to_left else (at, at + reach))
        spans.pop(-1, None)  # no room is left for these names
        for ends in spans.values():
            assert all(one[1] <= other[0] for one, other in pairwise(sorted(ends)))
        assert len(placed) == number


def test_thinned_looks_keep_the_last_and_every_peak() -> None:
    course = [(float(at), {"e_value": 50.0 if at == 137 else 1.0}) for at in range(400)]
    kept = thinned(course)
    assert len(kept) <= MOST_POINTS
    assert kept[-1] == course[-1]
    assert course[137] in kept
    assert thinned(course[:50]) == course[:50]


@pytest.mark.parametrize(("width", "theme"), [(1280, LIGHT), (500, DARK)])
def test_everybody_can_read_the_page(rolled_back: Story, tmp_path: Path, width: int, theme: int) -> None:
    page = tmp_path / "canary.html"
    page.write_text(rolled_back.page, encoding="utf-8")
    seen = seen_by_a_browser(page, width, theme)
    assert seen["violations"] == []
    assert seen["passed"] > 10
    assert seen["width"][0] <= seen["width"][1]
    assert seen["unseen"] == []
