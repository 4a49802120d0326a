"""What a suite may be: one section for each kind, so that a setting of another kind is refused by name."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from serin.core.config import Pattern, Section

BUILT_IN = "serin://"
"""Sources that ship with Serin: ``serin://attacks``."""
NAME = r"^[a-z][a-z0-9_-]{0,39}$"
PLACE = "{question}"


class _Suite(Section):
    """What every suite has."""

    name: str = Field(pattern=NAME)
    """Its metrics are called ``name.metric``."""
    source: str
    """JSON lines (also ``.gz``) as a path, ``file://`` or ``s3://``; ``serin://attacks`` for one that ships."""
    num_items: int = Field(200, ge=2)
    """Items at most: a repeatable choice by the evaluation's seed that takes every group before any twice."""
    labels: tuple[str, ...] = ()
    """The items' labels that make slices; empty: all of them."""

    @field_validator("source")
    @classmethod
    def _named(cls, source: str) -> str:
        if not source.strip():
            raise ValueError("name a file, or a suite that ships with Serin such as serin://attacks")
        return source


class _Asked(_Suite):
    """A suite whose items are questions."""

    template: str = PLACE
    """The user's turn; ``{question}`` stands for the item's."""
    through: Literal["model", "endpoint"] = "model"
    """``model``: the release's model and prompt with the item's own passages; ``endpoint``: over HTTP through a
    gateway, with retrieval and guardrails, as users get it."""

    @field_validator("template")
    @classmethod
    def _has_place(cls, template: str) -> str:
        if PLACE not in template:
            raise ValueError(f"it must hold {PLACE}")
        return template


class AnswersSuite(_Asked):
    """Answers compared with references: exact match, token F1, ROUGE, chrF, numbers, support, JSON validity."""

    kind: Literal["answers"] = "answers"
    json_schema: dict[str, Any] | None = None
    """Answers must be JSON of this schema ('schema_validity'); null asks for no form."""
    is_json: bool = False
    """Answers must be JSON ('json_validity')."""


class IntentsSuite(_Asked):
    """Which label of a set is the right one."""

    kind: Literal["intents"] = "intents"
    label_set: tuple[str, ...] = ()
    """The labels to choose from; empty: those of the source's items."""
    by: Literal["text", "likelihood"] = "text"
    """``text``: the one label that the answer names; ``likelihood``: the label that the model finds likeliest."""

    @model_validator(mode="after")
    def _model_for_likelihood(self) -> "IntentsSuite":
        if self.by == "likelihood" and self.through == "endpoint":
            raise ValueError("by: likelihood needs through: model, an endpoint gives no likelihood of labels")
        return self


class ChoicesSuite(_Suite):
    """Cloze and multiple choice: the continuation that the model finds likeliest for its length in bytes."""

    kind: Literal["choices"] = "choices"
    as_chat: bool = False
    """Whether a choice is an answer within the release's prompt, or plainly continues the question's text."""


class TextSuite(_Suite):
    """Bits per byte of plain text, which compares models of different tokenizers."""

    kind: Literal["text"] = "text"


class RetrievalSuite(_Suite):
    """What the release's index finds: recall, nDCG with graded relevance, reciprocal rank."""

    kind: Literal["retrieval"] = "retrieval"
    depth: int = Field(10, ge=1, le=100)
    """Documents looked at; the metrics are ``recall_at_5``, ``recall_at_K``, ``ndcg_at_K`` with this K."""


class AbstentionSuite(_Asked):
    """Whether unanswerable questions, and only those, are left unanswered."""

    kind: Literal["abstention"] = "abstention"
    patterns: tuple[Pattern, ...] = ()
    """Regular expressions, searched without regard to case, of further ways to abstain."""


class AttacksSuite(_Suite):
    """Attacks that should be blocked, and harmless twins that should not, at the endpoint."""

    kind: Literal["attacks"] = "attacks"


class LeaksSuite(_Asked):
    """Canaries that must never come out: strings of training data or of documents that the caller may not read."""

    kind: Literal["leaks"] = "leaks"
    through: Literal["model", "endpoint"] = "endpoint"
    """``endpoint``: what users can get out, retrieval and rails included; ``model``: what the model itself has learnt
    by heart."""
    min_chars: int = Field(8, ge=4)
    """So many letters and digits of a canary in a row are a leak, whatever stands between them."""


class LatencySuite(_Suite):
    """Time to the first token, between tokens and to the end, and cost, of one request at a time at the endpoint."""

    kind: Literal["latency"] = "latency"
    warm_up: int = Field(2, ge=0)
    """Requests to each release before anything is counted."""
    prompt_per_1k_tokens: float = Field(0.0, ge=0)
    """Price of what is read, in a currency of your choice."""
    completion_per_1k_tokens: float = Field(0.0, ge=0)
    """Price of what is written."""
    machine_per_hour: float = Field(0.0, ge=0)
    """Price of the machine while a request runs on it alone."""

    @property
    def has_prices(self) -> bool:
        """Whether requests have a cost."""
        return bool(self.prompt_per_1k_tokens or self.completion_per_1k_tokens or self.machine_per_hour)


class HarnessSuite(_Suite):
    """Tasks of lm-evaluation-harness: run on the release's model, or read from what it wrote."""

    kind: Literal["harness"] = "harness"
    source: str = "lm_eval"
    """``lm_eval`` runs the tasks where that package is installed; else the folder of samples that ``lm_eval
    --log_samples --output_path`` wrote, with ``{release}`` for the release's id or ``{role}`` for its role."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of its tasks."""
    include_path: str = ""
    """Folder of further task files."""


Suite = Annotated[
    AnswersSuite
    | IntentsSuite
    | ChoicesSuite
    | TextSuite
    | RetrievalSuite
    | AbstentionSuite
    | AttacksSuite
    | LeaksSuite
    | LatencySuite
    | HarnessSuite,
    Field(discriminator="kind"),
]
ENDPOINT_KINDS = ("attacks", "latency")
KINDS = tuple(kind.model_fields["kind"].default for kind in get_args(get_args(Suite)[0]))

DEFAULT_SUITES: tuple[Suite, ...] = (
    AttacksSuite(name="attacks", source="serin://attacks"),
    TextSuite(name="general_text", source="serin://general_text"),
    ChoicesSuite(name="general_cloze", source="serin://general_cloze"),
)


def needs_endpoint(suite: Suite) -> bool:
    """Whether a suite asks a running endpoint."""
    return suite.kind in ENDPOINT_KINDS or getattr(suite, "through", "") == "endpoint"
