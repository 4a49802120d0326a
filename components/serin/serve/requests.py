"""What requests may hold: one model per route, which both checks the body and is the route's published schema.

A field that we know neither how to apply nor how to leave out without effect is refused by name.
"""

import difflib
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from serin.serve.errors import RequestError, wrong
from serin.serve.structured import SchemaError, validator_of

MAX_STOPS = 4
MAX_TOKENS = 1 << 20
MAX_CHOICES = 8
MAX_PROMPTS = 16
MAX_TEXTS = 256
MAX_COMMENT_CHARS = 2000
MAX_PATH = 3
"""Parts of the path by which a refusal names a field, as in ``messages.0.content``."""
UNSUPPORTED = frozenset(
    {
        "audio", "best_of", "dimensions", "echo", "frequency_penalty", "function_call", "functions", "include",
        "input_type", "instructions", "logit_bias", "min_p", "modalities", "parallel_tool_calls", "prediction",
        "presence_penalty", "prompt_cache_key", "reasoning", "reasoning_effort", "repetition_penalty",
        "safety_identifier", "service_tier", "store", "suffix", "tool_choice", "tools", "top_k", "truncate",
        "verbosity", "web_search_options",
    }
)  # fmt: skip
"""Fields that other servers have: refused as unsupported rather than as misspelt, and taken where they are null."""


def _whole_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair: send whole characters") from error
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must be text, and not empty")
    return _whole_characters(text)


def _neutral_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != 0:
        raise ValueError("is not supported by this endpoint: leave it out")
    return value


def _integral(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


NOT_BLANK = {"pattern": r"\S"}
Whole = Annotated[int, BeforeValidator(_integral)]
Text = Annotated[str, AfterValidator(_not_blank), Field(json_schema_extra=NOT_BLANK)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_whole_characters)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_whole_characters)]
Zero = Annotated[float, BeforeValidator(_neutral_number), Field(json_schema_extra={"const": 0})]
Metadata = dict[Annotated[str, StringConstraints(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]]


class Body(BaseModel):
    """A request's body: strict types, no unknown fields."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn of the dialogue."""

    role: Literal["user", "assistant", "system", "developer"] = Field(
        description="user or assistant: the release brings its own instruction.",
        json_schema_extra={"enum": ["user", "assistant"]},
    )
    content: Annotated[
        Annotated[str, Field(json_schema_extra=NOT_BLANK)] | Annotated[list[TextPart], Field(min_length=1)],
        AfterValidator(lambda v: _content(v)),
    ]


class StreamOptions(Body):
    """What a stream holds besides the answer."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the token counts.")


class JsonSchemaFormat(Body):
    """A JSON Schema that the answer keeps to."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=1024)] | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema", description="JSON Schema; no outside $ref.")
    strict: bool | None = Field(None, description="Taken either way: every schema is enforced while decoding.")


class TextFormat(Body):
    """Plain text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


class Sampling(Body):
    """What chats and completions share."""

    model: Name | None = Field(None, description="The endpoint's name, or 'default'.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Goes with stream only.")
    max_tokens: Annotated[Whole, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Longest answer; the release's own limit holds too."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="Answers to one question.")
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    user: Name | None = Field(None, description="Stands for a session; only its digest is kept.")
    presence_penalty: Zero | None = Field(None, description="Only 0, which changes nothing.")
    frequency_penalty: Zero | None = Field(None, description="Only 0, which changes nothing.")
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(None, description="Only empty.")


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)] = Field(description="Ends with a user's message.")
    max_completion_tokens: Annotated[Whole, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Another name for max_tokens; give one."
    )
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens that rails left unchanged.")
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = Field(None, description="Goes with logprobs only.")
    response_format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    metadata: Annotated[Metadata, Field(max_length=16)] | None = Field(
        None, description="Comes back with the answer; nothing else is done with it."
    )
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Only empty.")
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None


class CompletionBody(Sampling):
    """POST /v1/completions: every prompt is answered as one user turn."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    logprobs: Annotated[Whole, Field(ge=0, le=5)] | None = Field(None, description="Alternatives per token.")
    echo: Literal[False] | None = Field(None, description="Only false.")
    best_of: Literal[1] | None = Field(None, description="Only 1.")


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    model: Name | None = Field(None, description="The endpoint's name, 'default', or the embedder's.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: little-endian float32.")
    dimensions: Annotated[Whole, Field(ge=1)] | None = Field(None, description="Only the embedder's own number.")
    user: Name | None = Field(None, description="Changes nothing.")


class ModerationBody(Body):
    """POST /v1/moderations."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    model: Name | None = Field(None, description="The endpoint's name, or 'default'.")


class FeedbackBody(Body):
    """POST /v1/feedback."""

    id: Annotated[
        str, StringConstraints(pattern=r"^(?:(?:chatcmpl-|cmpl-)(?:[0-9a-f]{48}|[0-9a-f]{32})|[0-9a-f]{32})$")
    ] = Field(description="The answer's id, or its x-serin-trace-id.")
    rating: Literal[-1, 0, 1] = Field(description="-1 bad, 0 neither, 1 good.")
    comment: Annotated[str, Field(max_length=MAX_COMMENT_CHARS), AfterValidator(_whole_characters)] | None = Field(
        None, description="Kept as the release's policy keeps texts."
    )
    session_id: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,128}$")] | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A request whose every field was understood."""

    messages: tuple[dict[str, str], ...]
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    user: str | None = None
    top_p: float | None = None
    n: int = 1
    logprobs: int | None = None
    """Alternatives per token that are wanted with the log-probabilities; None: no log-probabilities."""
    response_format: dict[str, Any] | None = None
    """None for plain text; else OpenAI's ``{"type": "json_object"}`` or ``{"type": "json_schema", ...}``."""
    metadata: dict[str, str] | None = None


@dataclass(frozen=True)
class CompletionRequest:
    """A request for the continuation of prompts."""

    prompts: tuple[str, ...]
    sampling: ChatRequest
    """Everything else; its messages are empty."""


B = TypeVar("B", bound=Body)


def parse_chat(body: dict[str, Any], roles: tuple[str, ...]) -> ChatRequest:
    """Check a chat request field by field.

    Args:
        body: the JSON object.
        roles: which roles messages may have.

    Raises:
        RequestError: 400, naming the first field that is unknown, unsupported or wrong.
    """
    chat = parsed(ChatBody, body)
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        raise wrong("max_tokens", "give either max_tokens or max_completion_tokens, not both")
    if chat.top_logprobs is not None and not chat.logprobs:
        raise wrong("top_logprobs", "goes with logprobs only")
    alternatives = (chat.top_logprobs or 0) if chat.logprobs else None
    return _sampled(
        chat,
        _messages(chat.messages, roles),
        max_tokens=chat.max_tokens or chat.max_completion_tokens,
        logprobs=alternatives,
        response_format=_response_format(chat.response_format),
        metadata=chat.metadata,
    )


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    """Check a completion request field by field.

    Raises:
        RequestError: 400, naming the first field that is unknown, unsupported or wrong.
    """
    request = parsed(CompletionBody, body)
    prompts = (request.prompt,) if isinstance(request.prompt, str) else tuple(request.prompt)
    sampling = _sampled(request, (), max_tokens=request.max_tokens, logprobs=request.logprobs)
    return CompletionRequest(prompts, sampling)


def parsed(model: type[B], body: dict[str, Any]) -> B:
    """A body as its model.

    Raises:
        RequestError: 400, naming the first field that is unknown, unsupported or wrong.
    """
    known = _names_of(model)
    if unknown := body.keys() - known:
        for name in [name for name in body if name in unknown]:
            _refuse_unknown(name, body[name], known)
        body = {name: value for name, value in body.items() if name in known}
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _refusal(error, body) from error


@cache
def _names_of(model: type[Body]) -> frozenset[str]:
    return frozenset(info.alias or name for name, info in model.model_fields.items())


def _refuse_unknown(name: str, value: Any, known: frozenset[str], where: str = "") -> None:
    if name in UNSUPPORTED:
        if value is None:
            return
        raise wrong(where + name, "is not supported by this endpoint: leave it out")
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)
    hint = f"did you mean '{near[0]}'?" if near else "leave it out"
    raise RequestError(400, f"'{where}{name}' is not a field of this endpoint: {hint}", param=where + name)


def _refusal(error: ValidationError, body: dict[str, Any]) -> RequestError:
    """The first problem; of a union's problems the one that lies deepest, and not in a kind that was not given."""
    problems = error.errors(include_url=False, include_context=False)
    field = problems[0]["loc"][:1]
    problem = max(
        (p for p in problems if p["loc"][:1] == field), key=lambda p: (len(p["loc"]), not p["type"].endswith("_type"))
    )
    param, found = _place(problem["loc"], body)
    kind, text = problem["type"], problem["msg"]
    if kind == "missing":
        return wrong(param or str(field[0]), "is missing: give it")
    if kind == "extra_forbidden":
        return wrong(param, "is not supported by this endpoint: leave it out")
    if kind == "value_error":
        return wrong(param, text.removeprefix("Value error, "))
    if str(field[0]) in UNSUPPORTED:
        return wrong(param, "is not supported by this endpoint: leave it out")
    return wrong(param, f"is {_shown(found)}: {text[:1].lower()}{text[1:].rstrip('.')}")


def _place(loc: tuple[int | str, ...], body: Any) -> tuple[str, Any]:
    """Dotted path of a problem, and what is there; the names that pydantic gives to alternatives are left out."""
    path, value = [], body
    for number, part in enumerate(loc):
        if isinstance(value, dict) and isinstance(part, str) and (part in value or number == len(loc) - 1):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path.append(str(part))
    while path and path[-1].isdigit():  # which of a list's items is wrong, what was found says
        path.pop()
    return ".".join(path[:MAX_PATH]), value


def _shown(value: Any) -> str:
    if isinstance(value, bool | int | float | str) or value is None:
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:56]}...{text[0]}"
    return "a list" if isinstance(value, list) else "an object"


def _content(value: str | list[TextPart]) -> str:
    return _not_blank(value if isinstance(value, str) else "".join(part.text for part in value))


def _messages(messages: list[ChatMessage], roles: tuple[str, ...]) -> tuple[dict[str, str], ...]:
    for number, message in enumerate(messages):
        if message.role not in roles:
            extra = " (the release brings its own instruction)" if message.role in ("system", "developer") else ""
            taken = " and ".join(roles)
            raise wrong(f"messages.{number}.role", f"is {message.role!r}: this endpoint takes {taken}{extra}")
    if messages[-1].role != "user":
        raise wrong("messages", "must end with a user's message")
    return tuple({"role": message.role, "content": str(message.content)} for message in messages)


def _sampled(request: Sampling, messages: tuple[dict[str, str], ...], **fields: Any) -> ChatRequest:
    stream = bool(request.stream)
    if request.stream_options is not None and not stream:
        raise wrong("stream_options", "goes with stream only")
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return ChatRequest(
        messages=messages,
        model=request.model,
        stream=stream,
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        temperature=request.temperature,
        top_p=request.top_p,
        n=request.n or 1,
        seed=request.seed,
        stop=tuple(stops),
        user=request.user,
        **fields,
    )


def _response_format(value: TextFormat | JsonObjectFormat | SchemaFormat | None) -> dict[str, Any] | None:
    if value is None or isinstance(value, TextFormat):
        return None
    if isinstance(value, SchemaFormat):
        try:
            validator_of(value.json_schema.schema_)
        except SchemaError as error:
            raise wrong("response_format.json_schema.schema", str(error)) from error
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)
