"""Examples won and lost, the two answers side by side, with the reference's words marked in both."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from serin.core.page import Section, badge, fold, side_by_side
from serin.core.palette import Tone
from serin.core.text import STOP_WORDS, token_f1
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.report_words import TONES, figure
from serin.evaluate.results import Answer, Outcome, definition

MAX_CHARS = 400
FAILURES = ("attack_success_rate", "leak_rate", "over_refusal_rate", "over_block_rate")
"""Metrics of safety whose value of an item is above 0 where something went wrong."""
_WORDS = re.compile(r"\w+(?:[.,'’]\w+)*")


def examples_section(answers: Mapping[str, Sequence[Answer]], config: EvaluateConfig) -> Section:
    """The answers to given passages on which the candidate loses and wins most, by token F1."""
    against = "champion" if "champion" in answers else "baseline"
    others = {one.id: one for one in answers.get(against, []) if one.source == "given"}
    pairs = [(one, others[one.id]) for one in answers["candidate"] if one.source == "given" and one.id in others]
    ranked = sorted(pairs, key=lambda pair: (_gain(*pair), pair[0].id))
    lost = [pair for pair in ranked[: config.num_examples] if _gain(*pair) < 0]
    won = [pair for pair in reversed(ranked) if _gain(*pair) > 0][: config.num_examples]
    parts = [
        f"<h3>{title}</h3>" + ("".join(_example(*pair, against) for pair in chosen) or "<p>None.</p>")
        for title, chosen in (("Lost most", lost), ("Won most", won))
    ]
    note = f"Candidate and {against} on the same question. Words of the reference are marked; F1 compares with it."
    return Section("Examples", "".join(parts) if pairs and config.num_examples else "", note)


def failures_of(outcomes: Mapping[str, Sequence[Outcome]], config: EvaluateConfig) -> str:
    """What the candidate let through, gave away or refused without need, beside what the other release did (HTML)."""
    against = "champion" if "champion" in outcomes else "baseline"
    others = {(one.suite, one.id): one for one in outcomes.get(against, ())}
    parts = []
    for metric in FAILURES:
        label = definition(metric).label
        found = [one for one in outcomes.get("candidate", ()) if one.values.get(metric, 0.0) > 0]
        shown = [
            _failure(one, others.get((one.suite, one.id)), metric, against) for one in found[: config.num_examples]
        ]
        if shown:
            parts.append(fold(f"{label}: {len(found)} by the candidate", "".join(shown)))
    return "".join(parts)


def _failure(one: Outcome, other: Outcome | None, metric: str, against: str) -> str:
    columns = [_did("candidate", one, metric)] + ([_did(against, other, metric)] if other else [])
    return (
        f'<article class="card"><p class="said"><strong>{escape(_cut(one.question))}</strong></p>'
        f'<p class="note">{escape(one.suite)}, {escape(one.id)}; expected: {escape(_cut(one.expected)) or "–"}</p>'
        f"{side_by_side(*columns)}</article>"
    )


def _did(role: str, outcome: Outcome, metric: str) -> str:
    failed = outcome.values.get(metric, 0.0) > 0
    mark = badge(Tone.BAD, "failed") if failed else badge(Tone.GOOD, "held")
    actions = f'<p class="note">{escape(", ".join(outcome.actions))}</p>' if outcome.actions else ""
    return (
        f'<p class="note"><strong class="tone-{TONES[role]}">{role.capitalize()}</strong> {mark}</p>'
        f'<p class="said">{escape(_cut(outcome.answer)) or "(no answer)"}</p>{actions}'
    )


def _example(one: Answer, other: Answer, against: str) -> str:
    wanted = _content(one.reference)
    answers = side_by_side(_said("candidate", one, wanted), _said(against, other, wanted))
    passages = "".join(f'<li class="said">{escape(_cut(text))}</li>' for text in one.passages)
    name = "The passage" if len(one.passages) == 1 else f"The {len(one.passages)} passages"
    context = fold(name, f"<ul>{passages}</ul>") if passages else ""
    return (
        f'<article class="card"><h4 class="said">{escape(_cut(one.question))}</h4>'
        f'<p class="said"><span class="note">Reference:</span> {escape(_cut(one.reference))}</p>{answers}{context}'
        "</article>"
    )


def _said(role: str, answer: Answer, wanted: frozenset[str]) -> str:
    score = figure(token_f1(answer.answer, answer.reference))
    return (
        f'<p class="note"><strong class="tone-{TONES[role]}">{role.capitalize()}</strong> · F1 {score}</p>'
        f'<p class="said">{_marked(_cut(answer.answer), wanted) or "(empty)"}</p>'
    )


def _marked(text: str, wanted: frozenset[str]) -> str:
    """The text as HTML, the wanted words marked."""
    parts, at = [], 0
    for match in _WORDS.finditer(text):
        if match[0].casefold() in wanted:
            parts.append(f"{escape(text[at : match.start()])}<mark>{escape(match[0])}</mark>")
            at = match.end()
    return "".join(parts) + escape(text[at:])


def _content(text: str) -> frozenset[str]:
    return frozenset(word.casefold() for word in _WORDS.findall(text)) - STOP_WORDS


def _gain(one: Answer, other: Answer) -> float:
    return token_f1(one.answer, one.reference) - token_f1(other.answer, other.reference)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
