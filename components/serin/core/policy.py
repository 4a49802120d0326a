"""The guardrail policy of a release: which rails there are and what each does.

The policy travels whole inside the release, so its digest is part of the release's id: changing a rail makes a new
release, which a gate judges and a canary tries like any other.  It is data only: the endpoint (``serin.serve``) acts
on it.

Access labels are no rail: the index leaves out what the caller may not see before any rail reads it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from serin.core.config import Pattern, Section
from serin.core.digests import digest_of
from serin.core.errors import ConfigError, InputError

Action = Literal["off", "flag", "mask", "block", "rewrite"]
"""``flag`` only records; ``mask`` replaces what was found; ``block`` refuses the text (or drops the passage);
``rewrite`` gives the policy's safe answer instead."""
InputAction = Literal["off", "flag", "block", "rewrite"]
PassageAction = Literal["off", "flag", "block"]
AnswerAction = Literal["off", "flag", "block", "rewrite"]
"""For rails that judge a whole text: there is nothing in it to mask."""

SAFE_ANSWER = "I am sorry, I cannot help with that here. Please contact our customer service."

INJECTION_PATTERNS = (
    r"\b(?:ignore|disregard|forget|override)\b.{0,30}\b(?:previous|prior|above|earlier|all|your)\b.{0,30}"
    r"\b(?:instructions?|rules?|prompts?|guidelines?|directions?)\b",
    r"\b(?:reveal|show|print|repeat|output|tell me)\b.{0,30}\b(?:system|hidden|initial|secret)\s+"
    r"(?:prompt|message|instructions?)\b",
    r"\byou are now\b.{0,40}\b(?:unrestricted|jailbroken|developer mode|"
    r"without (?:any )?(?:rules|limits|restrictions))",
    r"\b(?:ignore[zr]?|oublie[zr]?|ne tiens pas compte)\b.{0,40}\b(?:instructions?|consignes?|règles?)\b",
    r"<\|?(?:im_start|im_end|system|user|assistant|end|pad|endoftext)\|?>",
)


class PiiRail(Section):
    """What happens to personal data at each stage."""

    input: Action = "mask"
    """In what the user writes; masked means that the model never sees it."""
    retrieval: Literal["off", "flag", "mask", "block"] = "off"
    """In passages; off by default, because a shop's own address and phone number belong in its answers."""
    output: Action = "mask"
    """In answers; what the passages or the user's own turns say is let through."""


class InjectionRail(Section):
    """What happens to text that tries to instruct the model."""

    input: InputAction = "block"
    """In what the user writes."""
    retrieval: PassageAction = "block"
    """In passages; block leaves the passage out."""
    patterns: tuple[Pattern, ...] = INJECTION_PATTERNS
    """Regular expressions, searched without regard to case."""
    classifier: bool = True
    """Whether the learned classifier judges too."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Score from which a user's turn is taken for an injection or a jailbreak; null is the classifier's own."""
    passage_threshold: float | None = Field(default=None, gt=0, le=1)
    """The same for a passage."""
    passage_classifier: PassageAction = "flag"
    """What happens to a passage that the classifier alone finds: by default it is only recorded, because 2 to 4% of
    clean passages are found too, and a shop's page that is left out is a question without an answer."""


class HarmRail(Section):
    """Requests for something unsafe."""

    input: InputAction = "flag"
    """What happens to them."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Score from which a request is taken for unsafe; null is the classifier's own."""


class TopicRail(Section):
    """Questions off the endpoint's topics."""

    input: InputAction = "off"
    """What happens to them."""
    examples: tuple[str, ...] = ()
    """Questions that are on topic, a few dozen: what is unlike all of them is off topic."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Score from which a question is off topic; null is the classifier's own."""

    @model_validator(mode="after")
    def _has_examples(self) -> Self:
        if self.input != "off" and not self.examples:
            raise ValueError("give examples of questions that are on topic, or switch the rail off")
        return self


class LanguageRail(Section):
    """Languages that the endpoint answers."""

    input: InputAction = "off"
    """What happens to a question in another one; text too short to tell passes."""
    allowed: tuple[str, ...] = ("en",)
    """ISO 639-1 codes."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Confidence from which a language is taken as known; null is the classifier's own."""


class BannedRail(Section):
    """Phrases that an answer must not contain."""

    phrases: tuple[str, ...] = ()
    """Compared as whole words, without regard to case."""
    action: Action = "block"
    """What happens to an answer with one of them."""


class CompetitorRail(Section):
    """Competitors that an answer must not name."""

    names: tuple[str, ...] = ()
    """Compared as whole words, without regard to case."""
    action: Action = "mask"
    """What happens to an answer with one of them."""
    replacement: str = "another provider"
    """What stands for a masked name."""


class PromptLeakRail(Section):
    """Answers that repeat the release's own instruction."""

    action: Action = "block"
    """What happens to them."""
    words: int = Field(default=8, ge=4)
    """So many words of it in a row are a leak."""


class FormatRail(Section):
    """The form that every answer must have."""

    action: AnswerAction = "off"
    """What happens to an answer that has not."""
    json_schema: dict[str, Any] | None = None
    """JSON Schema of the answer, which is JSON then; null asks for no form."""

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if self.action != "off" and self.json_schema is None:
            raise ValueError("give a json_schema, or switch the rail off")
        return self


class GroundednessRail(Section):
    """Answers that their passages do not support; nothing is judged where no passage was found."""

    action: AnswerAction = "flag"
    """What happens to an answer with a low support score."""
    min_score: float | None = Field(default=None, ge=0, le=1)
    """Support score below which an answer is not supported; null is the score's own."""
    numbers: AnswerAction = "flag"
    """What happens to an answer with a number or price that the passages do not say, or say of something else."""
    negations: AnswerAction = "flag"
    """What happens to an answer that denies what the passages say, or the other way round."""
    names: AnswerAction = "off"
    """The same for names; off by default, because true answers often name what their passages do not."""


class RefusalRail(Section):
    """How an answer refuses."""

    action: Literal["off", "flag", "rewrite"] = "off"
    """What happens to a refusal in other words than ``text``; rewrite puts ``text`` there."""
    text: str = ""
    """The refusal."""

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if self.action != "off" and not self.text.strip():
            raise ValueError("give the text of a refusal, or switch the rail off")
        return self


class JudgeRail(Section):
    """A judge model behind an OpenAI-compatible endpoint; none unless a URL is given."""

    url: str = ""
    """Base URL, such as http://judge:8000/v1; empty: no judge."""
    model: str = ""
    """Name of the model."""
    api_key_variable: str = ""
    """Environment variable that holds the key; empty: none is sent."""
    checks: tuple[Literal["groundedness", "policy"], ...] = ("groundedness",)
    """What it is asked."""
    rules: str = ""
    """What answers must keep to, in words; for 'policy'."""
    action: AnswerAction = "flag"
    """What happens to an answer that it objects to."""
    timeout_s: float = Field(default=5.0, gt=0, le=120)
    """Longest wait for it."""
    on_error: Literal["open", "closed"] = "open"
    """When it does not answer: open lets the answer pass and records it, closed takes it for an objection."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.url and not (self.url.startswith(("http://", "https://")) and self.model):
            raise ValueError("a judge needs an http(s) url and a model")
        if self.url and "policy" in self.checks and not self.rules.strip():
            raise ValueError("give the rules that the judge asks for, or leave 'policy' out of checks")
        return self


class GuardrailPolicy(Section):
    """All rails of a release."""

    version: str = "1"
    """Named by whoever writes the policy; the digest is what identifies it."""
    safe_answer: str = Field(default=SAFE_ANSWER, min_length=1)
    """What the action rewrite answers."""
    max_input_chars: int = Field(default=4000, ge=1)
    """Longest user turn, characters; longer ones are refused."""
    pii: PiiRail = PiiRail()
    """Personal data."""
    injection: InjectionRail = InjectionRail()
    """Attempts to instruct the model through the user's text or a passage."""
    harm: HarmRail = HarmRail()
    """Requests for something unsafe."""
    topic: TopicRail = TopicRail()
    """Questions off the endpoint's topics."""
    language: LanguageRail = LanguageRail()
    """Languages that the endpoint answers."""
    secrets: Action = "mask"
    """Keys, tokens and passwords in answers."""
    prompt_leak: PromptLeakRail = PromptLeakRail()
    """Answers that repeat the release's own instruction."""
    banned: BannedRail = BannedRail()
    """Phrases that answers must not contain."""
    competitors: CompetitorRail = CompetitorRail()
    """Competitors that answers must not name."""
    format: FormatRail = FormatRail()
    """The form that every answer must have."""
    groundedness: GroundednessRail = GroundednessRail()
    """Answers that their passages do not support."""
    refusal: RefusalRail = RefusalRail()
    """How an answer refuses."""
    judge: JudgeRail = JudgeRail()
    """A judge model, off by default."""
    hold_back_chars: int = Field(default=64, ge=1)
    """When streaming, at least this much of the answer is held back until it is checked."""
    hold_whole_answer: bool = False
    """When streaming, hold the whole answer back, so that rails which judge it whole can still stop or rewrite it."""
    keep_text: Literal["full", "redacted", "none"] = "redacted"
    """How questions and answers are stored in endpoint events."""

    @property
    def digest(self) -> str:
        """Digest of the policy: equals ``Release.guardrails_digest`` of a release made with it."""
        return digest_of(self.dump())


def default_policy() -> GuardrailPolicy:
    """The policy of a release that names none."""
    return GuardrailPolicy()


def read_policy(path: Path) -> GuardrailPolicy:
    """A policy from a YAML or JSON file; what the file leaves out has its default.

    Raises:
        InputError: the file cannot be read, or is neither YAML nor JSON.
        ConfigError: naming the field that is wrong.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The policy {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"The policy {path} is neither YAML nor JSON: {' '.join(str(error).split())}.") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(
            f"The policy {path} holds a {type(values).__name__}: write one setting a line, 'name: value'."
        )
    return GuardrailPolicy.load(values)


def written_policy(policy: GuardrailPolicy) -> str:
    """A policy as YAML in which every setting is explained; ``read_policy`` reads it back."""
    return "\n".join(["# A guardrail policy of Serin. Every setting may be left out.", *_lines(policy, 0), ""])


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML in which only true and false are truth values: 'off' is an action."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|false|False"), list("tTfF"))


def _lines(section: Section, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        yield from (f"{indent}# {line}" for line in _wrapped(f"{field.description or ''}{_choices(field.annotation)}"))
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from _lines(value, depth + 1)
        elif isinstance(value, tuple) and value:
            yield f"{indent}{name}:"
            yield from (f"{indent}  - {json.dumps(item, ensure_ascii=False)}" for item in value)
        else:
            plain = list(value) if isinstance(value, tuple) else value
            yield f"{indent}{name}: {json.dumps(plain, ensure_ascii=False)}"


def _choices(annotation: Any) -> str:
    """' (one of ...)' for a field of fixed words."""
    words = getattr(annotation, "__args__", ())
    plain = [word for word in words if isinstance(word, str)]
    return f" One of: {', '.join(plain)}." if plain and len(plain) == len(words) else ""


def _wrapped(text: str, width: int = 100) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [line for line in lines if line]
