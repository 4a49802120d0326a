"""The judge model: over HTTP against a biased fake, both ways round, calibrated to people, bounded in time."""

import asyncio
import json
import time

import pytest
from judge_fake import JudgeFake
from worlds import context_of

from serin.core.errors import ConfigError
from serin.evaluate.config import EvaluateConfig, GatePolicy, Rule
from serin.evaluate.judge import gain_of, judge, swapped
from serin.evaluate.judge_client import Match, ask_all, verdict_in
from serin.evaluate.judge_config import JudgeConfig
from serin.evaluate.results import Answer

LONG, SHORT = "It costs 12 euros, with free delivery.", "It costs 12 euros."


def settings(fake: JudgeFake, **more) -> EvaluateConfig:
    values = {"url": fake.url, "model": "judge", "retries": 1, "timeout_s": 10.0, **more}
    rule = Rule(metric="judge_preference", kind="superiority", against="champion")
    return EvaluateConfig(resamples=1000, suites=(), gate=GatePolicy(rules=(rule,), judge=JudgeConfig(**values)))


def answers(*texts: str) -> list[Answer]:
    return [
        Answer(
            id=str(n), group="", language="en", source="given", question="How much?", reference="12 euros",
            answer=text, finish_reason="stop", passages=("It costs 12 euros.",),
        )
        for n, text in enumerate(texts)
    ]  # fmt: skip


async def no_pause(seconds: float) -> None:
    assert 0 < seconds <= 8


def test_the_better_answer_wins_whichever_way_round_and_alike_ones_are_not_asked_about(tmp_path):
    with JudgeFake() as fake:
        context = context_of(str(tmp_path), "evaluate")
        found = judge(settings(fake), answers(LONG, SHORT, SHORT), answers(SHORT, LONG, SHORT), {}, context)
        assert found.gains == {"0": 1.0, "1": -1.0, "2": 0.0}
        summary = found.summary
        assert (summary.won, summary.lost, summary.tied, summary.num_identical) == (1, 1, 0, 1)
        assert (summary.num_items, summary.inconsistent, summary.win_rate.estimate) == (2, 0, 0.5)
        assert len(fake.requests) == 4
        material = json.loads(fake.requests[0]["messages"][1]["content"])
        assert set(material) == {"question", "passages", "reference", "A", "B"}
        judge(settings(fake, timeout_s=5.0), answers(LONG, SHORT, SHORT), answers(SHORT, LONG, SHORT), {}, context)
        assert len(fake.requests) == 4, "verdicts on the same answers are kept"


def test_a_verdict_that_follows_the_order_is_a_tie(tmp_path):
    with JudgeFake(bias=100) as fake:
        found = judge(
            settings(fake), answers(LONG, LONG), answers(SHORT, SHORT), {}, context_of(str(tmp_path), "evaluate")
        )
    assert found.gains == {"0": 0.0, "1": 0.0}
    assert (found.summary.inconsistent, found.summary.tied) == (2, 2)


@pytest.mark.parametrize(
    ("first", "second", "gain", "is_swapped"),
    [
        ("A", "B", 1.0, False), ("B", "A", -1.0, False), ("A", "A", 0.0, True), ("B", "B", 0.0, True),
        ("tie", "tie", 0.0, False), ("A", "tie", 0.0, True), ("tie", "A", 0.0, True),
    ],
)  # fmt: skip
def test_two_verdicts_count_only_together(first, second, gain, is_swapped):
    assert gain_of(first, second) == gain
    assert swapped(first, second) is is_swapped


def test_agreement_with_people_is_stated_and_their_win_rate_estimated(tmp_path):
    ours, theirs = answers(*[LONG] * 30, *[SHORT] * 10), answers(*[SHORT] * 30, *[LONG] * 10)
    human = {str(n): (1.0 if n % 3 else -1.0) for n in range(24)}  # people mind the length less than the judge does
    with JudgeFake() as fake:
        found = judge(settings(fake), ours, theirs, human, context_of(str(tmp_path), "evaluate"))
    summary = found.summary
    assert summary.win_rate.estimate == pytest.approx(0.75)
    assert (summary.num_human, summary.accuracy, summary.kappa) == (24, pytest.approx(2 / 3), pytest.approx(0.0))
    assert summary.corrected_win_rate.estimate == pytest.approx(2 / 3)
    assert summary.corrected_win_rate.low < 0.5 < summary.win_rate.estimate


def matches(number: int) -> list[Match]:
    return [Match("q", (), "", LONG, SHORT)] * number


def test_a_judge_that_fails_for_a_moment_is_asked_again(tmp_path):
    with JudgeFake() as fake:
        fake.failures = [503, 0, 1, 429]
        config = settings(fake, retries=4, concurrency=1).gate.judge
        assert asyncio.run(ask_all(config, matches(1), sleep=no_pause)) == ["A"]
        assert len(fake.requests) == 5


def test_a_reply_in_two_packets_is_read_to_its_end():
    with JudgeFake() as fake:
        fake.pause_s = 0.1
        config = settings(fake, retries=0).gate.judge
        assert asyncio.run(ask_all(config, matches(1), sleep=no_pause)) == ["A"]


def test_a_judge_that_never_answers_holds_nothing_up_and_its_preference_is_missing(tmp_path):
    with JudgeFake() as fake:
        fake.hangs = True
        config = settings(fake, timeout_s=0.2, total_timeout_s=0.5, retries=9)
        started = time.monotonic()
        found = judge(config, answers(LONG, LONG), answers(SHORT, SHORT), {}, context_of(str(tmp_path), "evaluate"))
        assert time.monotonic() - started < 10
        assert found.gains == {}
        assert "gave no verdict on 2 of 2 pairs" in found.summary.why_missing
        fake.hangs = False
        again = judge(
            settings(fake), answers(LONG, LONG), answers(SHORT, SHORT), {}, context_of(str(tmp_path), "evaluate")
        )
        assert set(again.gains) == {"0", "1"}, "what failed was not kept"


def test_a_refusal_for_good_is_an_error_that_says_what_to_look_at():
    with JudgeFake() as fake:
        fake.failures = [401]
        with pytest.raises(ConfigError, match=r"refuses with status 401: look at its URL, model and key"):
            asyncio.run(ask_all(settings(fake).gate.judge, matches(1), sleep=no_pause))
        assert len(fake.requests) == 1


def test_the_key_comes_from_the_environment_and_is_written_nowhere(tmp_path, monkeypatch):
    with JudgeFake() as fake:
        config = settings(fake, api_key_variable="JUDGE_KEY")
        with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
            judge(config, answers(LONG, LONG), answers(SHORT, SHORT), {}, context_of(str(tmp_path), "evaluate"))
        monkeypatch.setenv("JUDGE_KEY", "sesame-4471")
        judge(config, answers(LONG, LONG), answers(SHORT, SHORT), {}, context_of(str(tmp_path), "evaluate"))
        assert set(fake.keys) == {"Bearer sesame-4471"}
    assert not any(b"sesame-4471" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_only_a_verdict_counts_of_what_a_judge_writes():
    def said(text):
        return verdict_in(json.dumps({"choices": [{"message": {"content": text}}]}).encode())

    assert said('{"verdict": "A"} on second thought {"verdict": " b "}') == "B"
    assert said('{"verdict": "both"}') is None
    assert said("A") is None
    assert said(None) is None
    assert verdict_in(b"<html>") is None


def test_the_prompt_and_the_model_are_part_of_the_policys_version():
    plain = GatePolicy()
    one = GatePolicy(judge=JudgeConfig(url="http://judge/v1", model="m"))
    other = one.model_copy(update={"judge": one.judge.model_copy(update={"prompt": one.judge.prompt + " Be strict."})})
    assert len({plain.version, one.version, other.version}) == 3
    assert GatePolicy(judge=JudgeConfig(num_items=7)).version == plain.version, "a judge that is off changes nothing"
    with pytest.raises(ConfigError, match="a judge needs an http"):
        JudgeConfig.load({"url": "http://judge/v1"})
    with pytest.raises(ConfigError, match="must ask for a json object"):
        JudgeConfig.load({"prompt": "Which one is better, A or B?"})
