"""A judge model compares the candidate's answers with another release's, each pair both ways round.

A verdict that follows the order of the answers is a tie.  Where people have judged some of the pairs
('serin evaluate verdicts'), their agreement with the judge is stated and the win rate is corrected by it.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serin.core.artifacts import Built
from serin.core.context import StageContext
from serin.core.digests import digest_of
from serin.core.statistics import Interval
from serin.evaluate.calibration import accuracy, cohens_kappa, prediction_powered_mean
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.judge_client import Match, Side, ask_all
from serin.evaluate.judge_config import JudgeConfig
from serin.evaluate.metrics import summarise
from serin.evaluate.results import Answer, JudgeSummary

METRIC = "judge_preference"
VERDICTS = "verdicts.json"
UNASKED = ("timeout_s", "retries", "total_timeout_s", "concurrency", "max_unjudged_fraction", "api_key_variable")
"""Settings that change no verdict."""


@dataclass(frozen=True)
class Judgement:
    """What a judge says of the candidate against one other release."""

    gains: dict[str, float]
    """Item to 1 (the candidate's answer is better), 0 or -1; empty where too few pairs were judged."""
    summary: JudgeSummary


class _UnansweredError(Exception):
    """Too many pairs have no verdict; the text says how many."""


def judge(
    config: EvaluateConfig,
    candidate: Sequence[Answer],
    other: Sequence[Answer],
    human: Mapping[str, float],
    context: StageContext,
) -> Judgement:
    """Ask the judge about a sample of the pairs, or find its earlier verdicts on the same answers.

    Args:
        config: with the judge's URL in the gate's policy.
        candidate: answers to given passages.
        other: the same of the release compared with.
        human: item to the mean gain that people give the candidate (-1 to 1); these are judged too, to compare.
        context: the stage's.

    Raises:
        ConfigError: the judge's key is not set, or it refuses for good.
    """
    settings = config.gate.judge
    every = _pairs(candidate, other)
    sample = sorted(every, key=lambda item: digest_of([config.seed, item]))[: settings.num_items]
    asked = dict.fromkeys([*sample, *sorted(item for item in human if item in every)])
    differing = {item: every[item] for item in asked if every[item][0].answer != every[item][1].answer}
    try:
        verdicts = _verdicts(settings, differing, context)
    except _UnansweredError as error:
        summary = JudgeSummary(
            model=settings.model, prompt_version=settings.prompt_version, num_items=0, why_missing=str(error)
        )
        return Judgement({}, summary)
    judged = {item: gain_of(*both) for item, both in verdicts.items() if None not in both}
    identical = [item for item in sample if item not in differing]
    gains = {item: judged.get(item, 0.0) for item in sample if item in judged or item not in differing}
    groups = {item: pair[0].group for item, pair in every.items()}
    of_sample = [gain for item, gain in gains.items() if item in judged]
    summary = JudgeSummary(
        model=settings.model,
        prompt_version=settings.prompt_version,
        num_items=len(of_sample),
        num_identical=len(identical),
        num_unjudged=len(differing) - len(judged),
        won=sum(gain > 0 for gain in of_sample),
        lost=sum(gain < 0 for gain in of_sample),
        tied=sum(gain == 0 for gain in of_sample),
        inconsistent=sum(swapped(*verdicts[item]) for item in gains if item in judged),
        win_rate=summarise({item: (gain + 1) / 2 for item, gain in gains.items()}, groups, config),
        **_calibrated(judged, human, len(of_sample) / max(1, len(gains)), config.confidence),
    )
    return Judgement(gains, summary)


def gain_of(shown_first: Side | None, shown_second: Side | None) -> float:
    """The candidate's gain from two verdicts: as answer A, then as answer B; a tie where they do not agree."""
    first = {"A": 1.0, "B": -1.0}.get(str(shown_first), 0.0)
    second = {"A": -1.0, "B": 1.0}.get(str(shown_second), 0.0)
    return first if first == second else 0.0


def swapped(shown_first: Side | None, shown_second: Side | None) -> bool:
    """Whether two verdicts contradict each other once the order is taken out."""
    other = {"A": "B", "B": "A", "tie": "tie"}
    return None not in (shown_first, shown_second) and shown_first != other[str(shown_second)]


def _pairs(candidate: Sequence[Answer], other: Sequence[Answer]) -> dict[str, tuple[Answer, Answer]]:
    others = {one.id: one for one in other if one.source == "given"}
    return {one.id: (one, others[one.id]) for one in candidate if one.source == "given" and one.id in others}


def _verdicts(
    settings: JudgeConfig, pairs: Mapping[str, tuple[Answer, Answer]], context: StageContext
) -> dict[str, tuple[Side | None, Side | None]]:
    """Item to verdict with the candidate as A, and as B."""

    def build(output: Path, scratch: Path) -> Built:
        matches = [_match(one, other) for pair in pairs.values() for one, other in (pair, pair[::-1])]
        said = asyncio.run(
            ask_all(
                settings,
                matches,
                lambda done: context.progress(f"judged {done} of {len(matches)}", done / len(matches)),
            )
        )
        both = dict(zip(pairs, zip(said[::2], said[1::2], strict=True), strict=True))
        unjudged = sum(None in one for one in both.values())
        if unjudged > settings.max_unjudged_fraction * len(both):
            raise _UnansweredError(
                f"the judge at {settings.url} gave no verdict on {unjudged} of {len(both)} pairs: see that it answers, "
                "and evaluate again."
            )
        (output / VERDICTS).write_text(json.dumps(both), encoding="utf-8")
        return Built({"num_pairs": len(both), "num_unjudged": unjudged})

    if not pairs:
        return {}
    asked = digest_of(
        [
            [item, one.question, one.reference, one.passages, one.answer, two.answer]
            for item, (one, two) in pairs.items()
        ]
    )
    keyed = {name: value for name, value in settings.dump().items() if name not in UNASKED}
    artifact = context.produce("judgements", build, inputs={"answers": asked}, config=keyed)
    found = json.loads((artifact.path / VERDICTS).read_text(encoding="utf-8"))
    return {item: (one, two) for item, (one, two) in found.items()}


def _match(one: Answer, other: Answer) -> Match:
    return Match(one.question, one.passages, one.reference, one.answer, other.answer)


def _calibrated(
    judged: Mapping[str, float], human: Mapping[str, float], share: float, confidence: float
) -> dict[str, Any]:
    """Agreement with people, and their win rate: of the ``share`` of pairs that differ; the identical ones are ties."""
    both = [item for item in judged if item in human]
    signs = [int(judged[item]) for item in both], [(human[item] > 0) - (human[item] < 0) for item in both]
    rate = prediction_powered_mean(
        [(human[item] + 1) / 2 for item in both],
        [(judged[item] + 1) / 2 for item in both],
        [(gain + 1) / 2 for item, gain in judged.items() if item not in human],
        confidence=confidence,
    )
    if rate is not None:
        at = [min(1.0, max(0.0, share * value + (1 - share) / 2)) for value in (rate.estimate, rate.low, rate.high)]
        rate = Interval(at[0], at[1], at[2], rate.count)
    return {
        "num_human": len(both),
        "accuracy": accuracy(*signs),
        "kappa": cohens_kappa(*signs),
        "corrected_win_rate": rate,
    }
