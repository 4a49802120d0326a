"""What answers hold: the schemas that /openapi.json publishes.

Answers are written without going through these models, which would cost more than the rest of the gateway; the tests
hold every answer against them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length", "content_filter"]
Share = Annotated[float, Field(ge=0, le=1)]


class Shape(BaseModel):
    """A part of an answer: no field that is not named."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Shape):
    """Why there is no answer."""

    message: str = Field(description="What was wrong, and what to change.")
    type: str
    param: str | None = Field(description="The field that is meant.")
    code: str | None = Field(description="content_filter: a guardrail refuses the input.")


class ErrorAnswer(Shape):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


class Citation(Shape):
    """A passage that the answer was given to rest on."""

    id: str
    document_id: str
    title: str
    score: float = Field(description="Cosine similarity to the question.")


class AnswerContext(Shape):
    """What an answer rests on, and whether it has the form that was asked for."""

    citations: list[Citation]
    format_valid: bool = Field(
        default=True, description="Only with response_format: whether the answer keeps to it; false when cut off."
    )


class TopLogprob(Shape):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(Shape):
    """Of the tokens that guardrails left as they were."""

    content: list[TokenLogprob] | None
    refusal: None


class AnswerMessage(Shape):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str = Field(description="Empty where a guardrail withholds it.")
    refusal: None
    context: AnswerContext


class ChatChoice(Shape):
    """One of n answers."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class Usage(Shape):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(Shape):
    """The answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str = Field(description="The release that answered: x-serin-release, shortened.")
    choices: list[ChatChoice]
    usage: Usage
    metadata: dict[str, str] | None = None


class CompletionLogprobs(Shape):
    """Of the tokens that guardrails left as they were."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Shape):
    """One of n answers to one of the prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    context: AnswerContext


class CompletionAnswer(Shape):
    """The answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class EmbeddingItem(Shape):
    """One text's vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="A string with encoding_format base64.")


class EmbeddingUsage(Shape):
    """Tokens; those beyond the embedder's limit are not counted."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Shape):
    """The answer of POST /v1/embeddings."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingItem]
    usage: EmbeddingUsage


class ModerationResult(Shape):
    """What the release's input rails say about a text."""

    flagged: bool = Field(description="Whether any rail acts on the text.")
    blocked: bool = Field(description="Whether a chat with this text would be refused.")
    categories: dict[str, bool] = Field(description="By rail: whether it acts.")
    category_scores: dict[str, float] = Field(description="By rail: its classifier's score, else 1 where it acts.")
    category_applied_input_types: dict[str, list[Literal["text"]]]
    actions: list[str] = Field(description="What would be done: 'input:rail:action'.")


class ModerationAnswer(Shape):
    """The answer of POST /v1/moderations."""

    id: str
    model: str
    results: list[ModerationResult]


class FeedbackAnswer(Shape):
    """The answer of POST /v1/feedback: taken, and joined to the answer's event when events are read."""

    object: Literal["feedback"]
    id: str


class Model(Shape):
    """A name that requests may give as model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Shape):
    """The answer of GET /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Health(Shape):
    """The process is alive."""

    status: Literal["ok"]


class Readiness(Shape):
    """Whether the champion's engine answers."""

    status: Literal["ready", "not ready"]
    reason: str = Field(default="", description="Why not.")


class RolloutState(BaseModel):
    """What is served now."""

    model_config = ConfigDict(extra="allow")

    champion: str
    candidate: str | None
    candidate_weight_percent: Annotated[float, Field(ge=0, le=100)]
    salt: str
    mirror_percent: Annotated[float, Field(ge=0, le=100)] = Field(description="The candidate's share in the shadow.")
    mirrored: dict[str, int] | None = Field(description="What became of the candidate's shadow requests.")
    fence: int = Field(description="The highest lease that a controller has shown.")
    edited: bool = Field(description="Whether a person, and no controller, told this last.")
    edited_by: str
    instance: str = Field(description="Another one after every start of the gateway.")
    failed_starts: dict[str, dict[str, Any]] = Field(description="By release: how often it could not be loaded, why.")
    follows_journal: bool
    releases: dict[str, dict[str, Any]] = Field(
        description="By release id: its track and its engine; ready (alive and answering), restarts."
    )


class Flushed(Shape):
    """Endpoint events that were written."""

    written: int
