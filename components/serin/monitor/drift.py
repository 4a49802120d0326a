"""Whether people ask other questions than the release was made for.

Questions of one template or customer are alike, so a test that takes them for independent raises an alarm whenever
the traffic happens to come from a few groups.  The limit is therefore calibrated: windows of the traffic's size are
drawn from as many groups of the reference as its test split holds, each is compared with the other groups, and the
traffic must be farther away than 99 of 100 of them, with a tolerance on top.  Two distances are taken: novelty (is
there any similar question in the reference) and mix (do known topics come in the same shares).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from serin.core.embedding import Embedder
from serin.core.statistics import energy_coefficients, euclidean_distances
from serin.core.text import STOP_WORDS, words
from serin.monitor.config import MonitorConfig
from serin.monitor.signals import QuestionDrift

Floats = NDArray[np.float64]
LIMIT_QUANTILE = 0.99


@dataclass(frozen=True)
class ReferenceQuestions:
    """Questions that a release was made for."""

    texts: tuple[str, ...]
    groups: tuple[str, ...]
    """The group of each question."""
    num_held_out_groups: int
    """Groups of the test split: what a window of unseen questions looks like."""


def question_drift(
    reference: ReferenceQuestions, current: Sequence[str], config: MonitorConfig, embedder: Embedder | None = None
) -> QuestionDrift:
    """Compare questions of the traffic with the reference.

    Args:
        reference: at least two groups.
        current: at least one question; at most ``max_questions`` are looked at.
        config: sizes and seed.
        embedder: a loaded one to share; None loads the default.
    """
    generator = np.random.default_rng(config.seed)
    known = _sample(len(reference.texts), config.max_reference_questions, generator)
    asked = [current[i] for i in _sample(len(current), config.max_questions, generator)]
    texts = [reference.texts[i] for i in known]
    vectors = (embedder or Embedder.load()).encode([*texts, *asked]).astype(np.float64)
    space = _Space(vectors[: len(known)], tuple(reference.groups[i] for i in known), vectors[len(known) :])
    novelty_limit, mix_limit = _limits(space, reference.num_held_out_groups, config, generator)
    return QuestionDrift(
        novelty=float(space.novelty.mean()),
        novelty_limit=novelty_limit,
        mix_distance=space.mix_distance,
        mix_limit=mix_limit,
        unknown_word_share=unknown_word_share(reference.texts, asked),
        language_shift=language_shift(texts, asked),
        median_words=(_median_words(texts), _median_words(asked)),
        num_reference=len(texts),
        num_current=len(asked),
    )


def unknown_word_share(reference: Sequence[str], current: Sequence[str]) -> float:
    """Share of the content words of the current texts that occur in no reference text."""
    known = {word for text in reference for word in words(text)}
    content = [word for text in current for word in words(text) if word not in STOP_WORDS and not word[0].isdigit()]
    return sum(word not in known for word in content) / len(content) if content else 0.0


def language_shift(reference: Sequence[str], current: Sequence[str]) -> float:
    """Total variation between the languages of two samples of texts (0 to 1), both detected in the same way."""
    from py3langid.langid import classify

    before, now = (Counter(classify(text)[0] for text in texts) for texts in (reference, current))
    return sum(abs(before[one] / len(reference) - now[one] / len(current)) for one in before | now) / 2


@dataclass(frozen=True)
class _Space:
    """Embedded questions."""

    reference: Floats
    """(reference, dimensions), unit rows."""
    groups: tuple[str, ...]
    current: Floats
    """(current, dimensions), unit rows."""

    @cached_property
    def novelty(self) -> Floats:
        """Distance from each current question to the nearest of the reference, (current,)."""
        return 1 - (self.current @ self.reference.T).max(axis=1)

    @cached_property
    def own_novelty(self) -> Floats:
        """Distance from each reference question to the nearest of another group, (reference,)."""
        names = np.array(self.groups)
        similar = np.where(names[:, None] == names[None, :], -1.0, self.reference @ self.reference.T)
        return 1 - similar.max(axis=1)

    @cached_property
    def mix_distance(self) -> float:
        """Energy coefficient between current and reference."""
        distances = euclidean_distances(np.concatenate([self.reference, self.current]))
        labels = np.zeros((len(distances), 1))
        labels[len(self.reference) :] = 1.0
        return float(energy_coefficients(distances, labels, 1 - labels)[0])


def _limits(
    space: _Space, num_groups: int, config: MonitorConfig, generator: np.random.Generator
) -> tuple[float, float]:
    """What windows of held-out groups of the reference reach, in novelty and in mix."""
    windows, rest = _windows(space, num_groups, config.calibration_windows, generator)
    novelty = space.own_novelty @ windows / windows.sum(axis=0)
    mix = energy_coefficients(euclidean_distances(space.reference), windows, rest)
    return float(np.quantile(novelty, LIMIT_QUANTILE)), float(np.quantile(mix, LIMIT_QUANTILE))


def _windows(space: _Space, num_groups: int, number: int, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Windows of the traffic's size from a few groups each, and the rest: both (reference, windows), as counts."""
    members: dict[str, list[int]] = {}
    for position, group in enumerate(space.groups):
        members.setdefault(group, []).append(position)
    names, size = list(members), len(space.current)
    taken = min(max(1, num_groups), max(1, len(names) // 2))
    windows = np.zeros((len(space.groups), number))
    rest = np.ones_like(windows)
    for column in range(number):
        inside = [i for name in generator.choice(len(names), taken, replace=False) for i in members[names[name]]]
        rest[inside, column] = 0.0
        np.add.at(windows[:, column], generator.choice(inside, size, replace=len(inside) < size), 1.0)
    return windows, rest


def _sample(total: int, size: int, generator: np.random.Generator) -> list[int]:
    if total <= size:
        return list(range(total))
    return sorted(int(i) for i in generator.choice(total, size, replace=False))


def _median_words(texts: Sequence[str]) -> float:
    return float(np.median([len(words(text)) for text in texts]))
