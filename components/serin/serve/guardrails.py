"""Rails: what a release's policy finds in a text, and what becomes of the text.

Pure checks over regular expressions; each verdict carries the time that it took.  A rail that a text passes leaves
no trace; one that acts is named as 'stage:rail:action' in the endpoint's events.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serin.core.pii import find_pii, mask_pii
from serin.core.policy import Action, GuardrailPolicy

Stage = Literal["input", "retrieval", "output"]
LONGEST_WORD_CHARS = 256
"""Text without a space is held back up to this length when streaming; scripts without spaces flow beyond it."""

_SECRETS = re.compile(
    "|".join(
        (
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----|[\s\S]*)",
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
            r"\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bgithub_pat_\w{30,}\b",
            r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
            r"\bsk-[A-Za-z0-9_-]{20,}|\bsk_live_[A-Za-z0-9]{16,}",
            r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
            r"\bAIza[\w-]{35}\b",
            r"(?i:\b(?:password|passwd|mot de passe|api[_ -]?key|secret[_ -]?key|access[_ -]?token)\b"
            r"(?: (?:is|est))? ?[:=]\s?)(?=\S*[\d\W_])\S{6,}",
        )
    )
)


@dataclass(frozen=True)
class Finding:
    """What a rail found: ``text[start:end]``."""

    rail: str
    action: Action
    start: int
    end: int
    replacement: str


@dataclass(frozen=True)
class Verdict:
    """What the rails of one stage say about a text."""

    text: str
    """The text to go on with, masked where the policy says so; empty when blocked."""
    blocked: bool
    actions: tuple[str, ...]
    """'stage:rail:action', each once."""
    latency_ms: float
    """What the checks took."""


class Guardrails:
    """A policy, ready to check texts; safe to share between threads."""

    def __init__(self, policy: GuardrailPolicy) -> None:
        self.policy = policy
        self._injection = _any_of(policy.injection.patterns)
        self._banned = _any_of([rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase in policy.banned.phrases])

    @property
    def hold_back_chars(self) -> int:
        """What stays back of a streamed answer: never less than the longest banned phrase."""
        return max(self.policy.hold_back_chars, *map(len, self.policy.banned.phrases), 1)

    def check(self, stage: Stage, text: str, context: Sequence[str] = ()) -> Verdict:
        """Run the rails of a stage over a whole text.

        Args:
            stage: where the text stands.
            text: the user's turn, a passage, or an answer.
            context: what an answer may repeat: its passages and the user's own turns.
        """
        started = time.perf_counter()
        findings = self.findings(stage, text, context)
        blocked = any(finding.action == "block" for finding in findings)
        return Verdict(
            text="" if blocked else masked(text, findings),
            blocked=blocked,
            actions=actions_of(stage, findings),
            latency_ms=(time.perf_counter() - started) * 1000,
        )

    def findings(self, stage: Stage, text: str, context: Sequence[str] = ()) -> list[Finding]:
        """What the rails of a stage find, in order of position."""
        policy = self.policy
        pii: Action = getattr(policy.pii, stage)
        found: list[Finding] = []
        if pii != "off":
            found += [
                Finding("pii", pii, match.start, match.end, f"<{match.kind.upper()}>")
                for match in find_pii(text)
                if not _repeats(text[match.start : match.end], context)
            ]
        if stage == "input" and len(text) > policy.max_input_chars:
            found.append(Finding("length", "block", 0, len(text), ""))
        if stage != "output":
            found += _matches("injection", getattr(policy.injection, stage), self._injection, text, "")
        else:
            found += _matches("secrets", policy.secrets, _SECRETS, text, "<SECRET>")
            found += _matches("banned", policy.banned.action, self._banned, text, "<REMOVED>")
        return sorted(found, key=lambda finding: (finding.start, finding.end))

    def kept(self, text: str) -> str:
        """A question or answer as the policy lets it be stored."""
        if self.policy.keep_text == "none":
            return ""
        if self.policy.keep_text == "full":
            return text
        return _SECRETS.sub("<SECRET>", mask_pii(text)[0])


class OutputGuard:
    """Checks an answer while it streams: holds back its end, so that nothing is released before it could be judged.

    At least ``hold_back_chars`` stay back, and the cut is made at a space and never inside a finding: a number or an
    address that comes in several pieces is seen whole.
    """

    def __init__(self, guardrails: Guardrails, context: Sequence[str]) -> None:
        self._guardrails, self._context = guardrails, context
        self._pending = ""
        self._actions: dict[str, None] = {}
        self.blocked = False
        self.latency_ms = 0.0

    @property
    def actions(self) -> tuple[str, ...]:
        """Everything the rails did so far."""
        return tuple(self._actions)

    def push(self, text: str) -> str:
        """Take a piece of the answer; returns what may be released now."""
        self._pending += text
        ripe = len(self._pending) - self._guardrails.hold_back_chars
        if ripe <= 0 or self.blocked:
            return ""
        space = max(self._pending.rfind(" ", 0, ripe), self._pending.rfind("\n", 0, ripe))
        cut = space if space >= 0 else len(self._pending) - LONGEST_WORD_CHARS
        return self._release(cut) if cut > 0 else ""

    def finish(self) -> str:
        """The end of the answer, checked."""
        return "" if self.blocked else self._release(len(self._pending))

    def _release(self, cut: int) -> str:
        started = time.perf_counter()
        findings = self._guardrails.findings("output", self._pending, self._context)
        self.blocked = any(finding.action == "block" for finding in findings)
        while inside := [finding.start for finding in findings if finding.start < cut < finding.end]:
            cut = min(inside)
        done = [finding for finding in findings if finding.end <= cut or self.blocked]
        self._actions |= dict.fromkeys(actions_of("output", done))
        text = "" if self.blocked else masked(self._pending[:cut], done)
        self._pending = self._pending[cut:]
        self.latency_ms += (time.perf_counter() - started) * 1000
        return text


def masked(text: str, findings: Sequence[Finding]) -> str:
    """The text with every finding to be masked replaced; the first of two that overlap counts."""
    parts, last = [], 0
    for finding in findings:
        if finding.action == "mask" and finding.start >= last:
            parts += [text[last : finding.start], finding.replacement]
            last = finding.end
    return "".join([*parts, text[last:]])


def actions_of(stage: Stage, findings: Sequence[Finding]) -> tuple[str, ...]:
    """'stage:rail:action' of each finding, each once."""
    return tuple(dict.fromkeys(f"{stage}:{finding.rail}:{finding.action}" for finding in findings))


def _matches(rail: str, action: Action, pattern: re.Pattern[str] | None, text: str, replacement: str) -> list[Finding]:
    if action == "off" or pattern is None:
        return []
    return [Finding(rail, action, m.start(), m.end(), replacement) for m in pattern.finditer(text) if m.group()]


def _any_of(patterns: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE) if patterns else None


def _repeats(value: str, context: Sequence[str]) -> bool:
    wanted = _squeezed(value)
    return any(wanted in _squeezed(text) for text in context)


def _squeezed(text: str) -> str:
    return re.sub(r"[\s.()-]", "", text).casefold()
