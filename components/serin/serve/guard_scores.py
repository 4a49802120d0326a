"""The learned rails: scores of the classifiers in ``serin.serve.rails``, each text judged once."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock

from serin.core.policy import Action, GuardrailPolicy
from serin.serve.guard_findings import Finding, Stage
from serin.serve.rails import harm, injection, language
from serin.serve.rails.topic import DEFAULT_THRESHOLD as TOPIC_THRESHOLD
from serin.serve.rails.topic import TopicModel

REMEMBERED = 4096
"""Scores that are kept, by digest of their text: passages and earlier turns come again and again."""


@dataclass(frozen=True)
class _Rail:
    name: str
    action: Action
    score: Callable[[str], float]
    threshold: float


class LearnedRails:
    """The classifiers that a policy switches on; safe to share between threads."""

    def __init__(self, policy: GuardrailPolicy) -> None:
        self._rails: dict[Stage, list[_Rail]] = {"input": [], "retrieval": [], "output": []}
        self._seen: dict[tuple[str, bytes], float] = {}
        self._lock = Lock()
        rail = policy.injection
        if rail.classifier:
            turn, passage = rail.threshold, rail.passage_threshold
            self._add("input", "injection", rail.input, injection.score, turn or injection.DEFAULT_THRESHOLD)
            self._add(
                "retrieval", "injection", "off" if rail.retrieval == "off" else rail.passage_classifier,
                injection.score_passage,
                passage or injection.DEFAULT_PASSAGE_THRESHOLD,
            )  # fmt: skip
        self._add("input", "harm", policy.harm.input, harm.score, policy.harm.threshold or harm.DEFAULT_THRESHOLD)
        if policy.topic.input != "off":
            topics = TopicModel.fit(policy.topic.examples)
            self._add("input", "topic", policy.topic.input, topics.score, policy.topic.threshold or TOPIC_THRESHOLD)
        least = policy.language.threshold or language.DEFAULT_THRESHOLD
        self._add("input", "language", policy.language.input, _foreign(frozenset(policy.language.allowed)), least)

    def names(self, stage: Stage) -> list[str]:
        """Rails of a stage, in the order in which they are asked."""
        return [rail.name for rail in self._rails[stage]]

    def judge(self, stage: Stage, name: str, text: str) -> tuple[float, Finding | None]:
        """One rail's score of a text (0 to 1, higher is worse), and its finding."""
        rail = next(rail for rail in self._rails[stage] if rail.name == name)
        value = round(self._remembered(stage, rail, text), 4)
        return value, Finding(name, rail.action, 0, len(text), "") if value >= rail.threshold else None

    def _add(self, stage: Stage, name: str, action: Action, score: Callable[[str], float], threshold: float) -> None:
        if action != "off":
            self._rails[stage].append(_Rail(name, action, score, threshold))

    def _remembered(self, stage: Stage, rail: _Rail, text: str) -> float:
        key = (f"{stage}:{rail.name}", blake2b(text.encode("utf-8", "replace"), digest_size=16).digest())
        found = self._seen.get(key)
        if found is None:
            found = float(rail.score(text))
            with self._lock:
                while len(self._seen) >= REMEMBERED:
                    del self._seen[next(iter(self._seen))]
                self._seen[key] = found
        return found


def _foreign(allowed: frozenset[str]) -> Callable[[str], float]:
    """How sure it is that a text is in none of the allowed languages."""

    def score(text: str) -> float:
        code, confidence = language.detect(text)
        return 0.0 if code == "und" or code in allowed else confidence

    return score
