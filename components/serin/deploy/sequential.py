"""Statistics that stay valid however often one looks (anytime-valid), as the judge needs them.

Evidence is gathered in *blocks*: runs of consecutive sessions that hold both sides.  Only sessions of one block are
compared, so the candidate meets champions of its own time, and a load that drifts, or a share that grows from step to
step, moves both sides of every comparison alike.  Where a block ends depends on arrivals alone, and what a block has
contributed never changes when more data comes.

All functions are vectorised over sessions and return *paths*: a value after each block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

TILT_BLOCK = 20
"""Sessions of a block of the exchangeability test: fewer lose information (about one in so many), more delay it."""
MEAN_BLOCK = 4
"""Sessions of a block of the confidence sequence of a difference of means."""
BET_BLOCK = 2
"""Sessions of a block of the betting test: one bet for about each session of the smaller side."""
RHO_SQUARED = 0.1
"""Mixture parameter of the confidence sequence: tightest at around 40 to 100 observations."""
ODDS_RATIOS, ODDS_WEIGHTS = (2.5,), (1.0,)
"""Rise of a rate that the test of rates is made for; others are found too, later."""
SESSION_CORRELATION = 0.15
"""Working correlation of failures within a session; a wrong one costs power, never validity."""
SHIFTS, SHIFT_WEIGHTS = (0.15, 0.35, 0.8), (0.4, 0.4, 0.2)
"""Shifts of a mean logarithm beyond what is tolerated that the test of logarithms is made for."""
MAX_TILT = 1.5
"""Largest tilt a standard deviation, and winsorising at so many deviations: no single session may decide."""
WINSOR = 3.0
BETS = (0.05, 0.15, 0.35, 0.65, 0.95)
"""Fractions of the largest allowed bet that the betting test mixes."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds."""

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Blocks:
    """Closed blocks of a stream of sessions."""

    index: Ints
    """(sessions,) the block of each session; -1: its block is still open."""
    ends: Ints
    """(blocks,) how many sessions had arrived when each closed."""

    @property
    def number(self) -> int:
        """How many are closed."""
        return len(self.ends)

    def sums(self, values: Floats | Bools) -> Floats:
        """(blocks,) the sum of a value over each block's sessions."""
        closed = self.index >= 0
        summed = np.bincount(self.index[closed], weights=values[closed].astype(float), minlength=self.number)
        return summed.astype(np.float64)

    def spread(self, values: Floats, open_value: float = 0.0) -> Floats:
        """(sessions,) each block's value at its sessions."""
        padded = np.append(values, open_value)
        return padded[self.index]


@dataclass(frozen=True)
class Path:
    """Log e-values: evidence against 'no harm' (or against 'harm'), after each closed block."""

    ends: Ints
    """(blocks,) sessions that had arrived."""
    log_e: Floats
    """(blocks,) natural logarithm of the e-value."""

    @property
    def last(self) -> float:
        """The log e-value now; 0 without data."""
        return float(self.log_e[-1]) if len(self.log_e) else 0.0


def blocks_of(of_candidate: Bools, size: int) -> Blocks:
    """Cut a stream into blocks of at least ``size`` sessions with at least one of each side."""
    number = len(of_candidate)
    following = [_next(of_candidate).tolist(), _next(~of_candidate).tolist()]
    ends: list[int] = []
    start = 0
    while start < number:
        end = max(start + size, following[0][start] + 1, following[1][start] + 1)
        if end > number:
            break
        ends.append(end)
        start = end
    closed = np.array(ends, dtype=np.int64)
    index = np.searchsorted(closed, np.arange(number), side="right")
    return Blocks(np.where(np.arange(number) < start, index, -1), closed)


def _next(there: Bools) -> Ints:
    """(sessions,) the first place, at or after each, that is true; beyond the end where there is none."""
    place = np.where(there, np.arange(len(there)), len(there))
    return np.minimum.accumulate(place[::-1])[::-1]


def tilted_path(of_candidate: Bools, log_scores: Floats, blocks: Blocks, weights: tuple[float, ...]) -> Path:
    """E-process against 'within a block, which sessions are the candidate's says nothing about their scores'.

    In each block, the exponentially tilted share of the scores that fell to the candidate over its average under all
    ways to deal the block's sessions to the two sides: with S the sum of the candidate's log scores, a = its sessions,
    b = the block's, exp(S) C(b, a) / e_a(exp(score_1), ..., exp(score_b)), e_a the elementary symmetric polynomial.
    Its mean is 1 when sessions of a block are exchangeable, whatever the distribution, its drift over time, or the
    dependence of requests within a session; and at most 1 when the candidate's scores are stochastically smaller,
    because it grows with each of them.  For 0/1 scores it is the conditional (Fisher) likelihood ratio of an odds
    ratio; the sequential product over blocks is that of Turner, Ly and Gruenwald (2021) and of the safe log-rank test
    (ter Schure, Perez-Ortiz, Ly and Gruenwald, 2020).  Columns of ``log_scores`` are alternatives, mixed by
    ``weights``: the method of mixtures (Robbins, 1970).

    Args:
        of_candidate: (sessions,).
        log_scores: (sessions, alternatives), computed for a block from earlier blocks and from the block's values
            without their sides.
        blocks: the stream's blocks.
        weights: (alternatives,), summing to 1.
    """
    number, alternatives = blocks.number, log_scores.shape[1]
    if not number:
        return Path(blocks.ends, np.zeros(0))
    closed = np.flatnonzero(blocks.index >= 0)
    of_block = blocks.index[closed]
    sizes = np.bincount(of_block, minlength=number)
    place = np.arange(len(closed)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    scores = np.zeros((number, int(sizes.max()), alternatives))
    present, dealt = np.zeros(scores.shape[:2], dtype=bool), np.zeros(scores.shape[:2], dtype=bool)
    scores[of_block, place] = log_scores[closed]
    present[of_block, place], dealt[of_block, place] = True, of_candidate[closed]
    # The smaller side is dealt: the same ratio, seen from the other side, with fewer terms.
    turned = dealt.sum(1) * 2 > sizes
    dealt = np.where(turned[:, None], present & ~dealt, dealt)
    scores *= np.where(turned, -1.0, 1.0)[:, None, None]
    hands = dealt.sum(1)
    average = _log_symmetric_mean(scores, present, hands)
    log_e = np.cumsum((scores * dealt[:, :, None]).sum(1) - average, axis=0)  # (blocks, alternatives)
    return Path(blocks.ends, log_mixture(log_e, weights))


def log_mixture(log_e: Floats, weights: tuple[float, ...]) -> Floats:
    """(rows,) logarithm of the weighted mean of the e-values in each row."""
    highest = log_e.max(axis=1)
    return np.asarray(highest + np.log(np.exp(log_e - highest[:, None]) @ np.asarray(weights)))


def _log_symmetric_mean(scores: Floats, present: Bools, hands: Ints) -> Floats:
    """Log of the mean of exp(sum of the scores) over all hands of a block: its elementary symmetric polynomial."""
    number, size, alternatives = scores.shape
    polynomial = np.zeros((number, alternatives, int(hands.max()) + 1))
    polynomial[:, :, 0] = 1.0
    ways = np.zeros((number, int(hands.max()) + 1))
    ways[:, 0] = 1.0
    for place in range(size):
        term = np.where(present[:, place, None], np.exp(scores[:, place]), 0.0)
        polynomial[:, :, 1:] += term[:, :, None] * polynomial[:, :, :-1].copy()
        ways[:, 1:] += present[:, place, None] * ways[:, :-1].copy()
    rows = np.arange(number)
    return np.log(polynomial[rows, :, hands]) - np.log(ways[rows, hands])[:, None]


def rate_log_scores(events: Floats, trials: Floats, blocks: Blocks) -> Floats:
    """Log scores of a rate: the likelihood ratio of each session under a beta-binomial working model.

    A session with n requests of which k failed gets log BB(k; n, p', r) / BB(k; n, p, r) with p from earlier blocks,
    p' at odds ``ODDS_RATIOS`` times those of p, and r = ``SESSION_CORRELATION``: ten failures of one broken
    conversation weigh little more than one, and a long session without failures more than a short one.

    Args:
        events: (sessions,) failures.
        trials: (sessions,) requests.
        blocks: the stream's blocks.

    Returns:
        (sessions, odds ratios).
    """
    failed, asked = blocks.sums(events), blocks.sums(trials)
    before = (np.cumsum(failed) - failed + 0.5) / (np.cumsum(asked) - asked + 50.0)
    base = blocks.spread(before, 0.01)
    raised = [ratio * base / (1 - base + ratio * base) for ratio in ODDS_RATIOS]
    under_base = _beta_binomial(events, trials, base)
    return np.stack([_beta_binomial(events, trials, rate) - under_base for rate in raised], axis=1)


def _beta_binomial(events: Floats, trials: Floats, rate: Floats) -> Floats:
    from scipy.special import betaln

    concentration = (1 - SESSION_CORRELATION) / SESSION_CORRELATION
    first, second = rate * concentration, (1 - rate) * concentration
    return np.asarray(betaln(events + first, trials - events + second) - betaln(first, second))


def shift_log_scores(values: Floats, blocks: Blocks) -> Floats:
    """Log scores of a logarithm: its distance from the block's median, in deviations, times each tilt.

    The scale is the mean over this and earlier blocks of a block's robust deviation (1.4826 times the median absolute
    deviation, at least 0.3 times the standard deviation): symmetric in the block's sessions, so the test stays exact.

    Args:
        values: (sessions,) larger is worse; the candidate's less what is tolerated.
        blocks: the stream's blocks.

    Returns:
        (sessions, shifts).
    """
    medians = _medians(values, blocks)
    away = np.abs(values - blocks.spread(medians))
    sizes = np.diff(blocks.ends, prepend=0)
    square = np.maximum(blocks.sums(values**2) / sizes - (blocks.sums(values) / sizes) ** 2, 0.0)
    scales = np.maximum(np.maximum(1.4826 * _medians(away, blocks), 0.3 * np.sqrt(square)), 1e-6)
    scale = np.cumsum(scales) / np.arange(1, blocks.number + 1)
    deviations = np.clip((values - blocks.spread(medians)) / blocks.spread(scale, 1.0), -WINSOR, WINSOR)
    tilts = np.minimum(np.array(SHIFTS) / blocks.spread(scale, 1.0)[:, None], MAX_TILT)
    return deviations[:, None] * tilts


def _medians(values: Floats, blocks: Blocks) -> Floats:
    """(blocks,) the median of each block."""
    closed = np.flatnonzero(blocks.index >= 0)
    ordered = values[closed][np.lexsort((values[closed], blocks.index[closed]))]
    sizes = np.diff(blocks.ends, prepend=0)
    starts = blocks.ends - sizes
    return np.asarray((ordered[starts + (sizes - 1) // 2] + ordered[starts + sizes // 2]) / 2)


def betting_path(gains: Floats, ends: Ints, worst: float) -> Path:
    """E-process against 'the mean gain, given the past, is at most 0', for gains that are never below ``-worst``.

    Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2023): the capital of a player
    who bets the fraction x of the largest allowed stake each time, prod (1 + x gain / worst), averaged over ``BETS``.
    Exact for any bounded distribution, without a variance to estimate: all-equal data is evidence too.

    Args:
        gains: (blocks,) one a block.
        ends: (blocks,) sessions that had arrived at each.
        worst: the largest possible loss, above 0.
    """
    if not len(gains):
        return Path(ends, np.zeros(0))
    worst = max(worst, 0.05)
    stakes = np.array(BETS) / worst
    log_capital = np.cumsum(np.log1p(np.maximum(gains, -worst)[:, None] * stakes), axis=0)
    return Path(ends, log_mixture(log_capital, tuple(np.full(len(BETS), 1 / len(BETS)))))


def block_differences(values: Floats, of_candidate: Bools, blocks: Blocks) -> tuple[Floats, Floats]:
    """(blocks,) mean of the candidate less mean of the champion, and its weight: a b / (a + b) of their sessions."""
    candidates, champions = blocks.sums(of_candidate), blocks.sums(~of_candidate)
    first, second = blocks.sums(values * of_candidate), blocks.sums(values * ~of_candidate)
    return first / candidates - second / champions, candidates * champions / (candidates + champions)


def mean_width(deviation: Floats | float, number: Floats | float, alpha: float) -> Floats:
    """Half width of the asymptotic confidence sequence of a mean.

    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
    sequences" (2021), eq. 2: sd sqrt(2 (n rho^2 + 1) / (n^2 rho^2) log(sqrt(n rho^2 + 1) / alpha)).
    """
    scale = np.asarray(number) * RHO_SQUARED + 1
    squared = 2 * scale / (np.asarray(number) ** 2 * RHO_SQUARED) * np.log(np.sqrt(scale) / alpha)
    return np.asarray(deviation) * np.sqrt(squared)


def difference_path(values: Floats, of_candidate: Bools, alpha: float) -> tuple[Ints, Floats, Floats]:
    """Asymptotic confidence sequence of mean(candidate) - mean(champion), compared within blocks.

    The estimate is the weighted mean of the blocks' differences; its variance that of the sides' sample variances
    (so the sides may differ in spread, and drift only widens it); the width that of ``mean_width`` at as many
    observations as the smaller side has.

    Returns:
        (blocks,) sessions that had arrived, estimates, half widths (infinite below two sessions a side).
    """
    blocks = blocks_of(of_candidate, MEAN_BLOCK)
    if not blocks.number:
        return blocks.ends, np.zeros(0), np.zeros(0)
    difference, weight = block_differences(values, of_candidate, blocks)
    total = np.cumsum(weight)
    estimate = np.cumsum(weight * difference) / total
    variance = np.zeros(blocks.number)
    sides = []
    for side in (of_candidate, ~of_candidate):
        in_blocks = blocks.sums(side)
        number = np.cumsum(in_blocks)
        mean = np.cumsum(blocks.sums(values * side)) / number
        squares = np.cumsum(blocks.sums(values**2 * side)) - number * mean**2
        with np.errstate(divide="ignore", invalid="ignore"):
            sample = np.where(number > 1, np.maximum(squares, 0.0) / (number - 1), np.inf)
            variance = variance + sample * np.cumsum(weight**2 / in_blocks) / total**2
        sides.append(number)
    smaller = np.minimum(sides[0], sides[1])
    return blocks.ends, estimate, mean_width(np.sqrt(variance * smaller), smaller, alpha)


def difference_sequence(values: Floats, of_candidate: Bools, alpha: float) -> Interval:
    """The confidence sequence of a difference of means now; infinite without data (``difference_path``)."""
    _, estimates, widths = difference_path(values, of_candidate, alpha)
    if not len(estimates):
        return Interval(math.nan, -math.inf, math.inf)
    estimate, width = float(estimates[-1]), float(widths[-1])
    return Interval(estimate, estimate - width, estimate + width)


def bounded_sequence(values: Floats, of_candidate: Bools, alpha: float) -> Interval:
    """Confidence sequence of a difference of means of values in 0 to 1: the differences that betting cannot exclude.

    Args:
        values: (sessions,) in 0 to 1.
        of_candidate: (sessions,).
        alpha: chance that the difference ever leaves it, half on each side.

    Returns:
        Bounds to 0.001, within -1 to 1.
    """
    blocks = blocks_of(of_candidate, BET_BLOCK)
    if not blocks.number:
        return Interval(math.nan, -1.0, 1.0)
    difference, weight = block_differences(values, of_candidate, blocks)
    estimate = float(np.sum(weight * difference) / np.sum(weight))

    def excluded(edge: float, sign: float) -> bool:
        gains = sign * (difference - edge)
        return betting_path(gains, blocks.ends, 1 + sign * edge).last >= math.log(2 / alpha)

    inside = min(max(estimate, -1.0), 1.0)
    return Interval(
        estimate, _edge(lambda edge: excluded(edge, 1.0), inside, -1.0), _edge(lambda e: excluded(e, -1.0), inside, 1.0)
    )


def _edge(excluded: Callable[[float], bool], inside: float, outside: float) -> float:
    """Bisect between a value that is inside an interval and one end of what is possible."""
    if not excluded(outside):
        return outside
    while abs(outside - inside) > 0.001:
        middle = (inside + outside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside
