"""Tell what a row is by its columns, and give it the shape of a record; nothing is cleaned here.

==========================================================  =======================================
columns                                                     become
==========================================================  =======================================
``messages``, ``conversations`` or ``turns``                a conversation
``question`` (or ``query``) and ``document_ids``            a golden retrieval question
the configured pair, or one of ``PAIRS``                    a conversation of one question and answer
``text``, ``content`` or ``body``                           a document
==========================================================  =======================================
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serin.core.retrieval import access_labels
from serin.data_prep.config import DataPrepConfig
from serin.data_prep.readers import Row

DIALOGUE = ("messages", "conversations", "turns")
PAIRS = (
    ("instruction", "response"),
    ("instruction", "output"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("input", "output"),
    ("query", "response"),
)
TEXT = ("text", "content", "body")
IDS = ("id", "doc_id", "document_id", "conversation_id", "_id")
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "customer": "user",
    "client": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "agent": "assistant",
    "model": "assistant",
}
MAX_METADATA_CHARS = 200


class UnusableRow(Exception):
    """A row that cannot become a record; the text says why, without quoting its content."""


@dataclass
class Raw:
    """A record before cleaning."""

    kind: Literal["conversation", "document", "golden"]
    source: str
    """File, relative to the source."""
    row: int
    """Row or line number in it; 0: the whole file."""
    id: str
    """As the row gives it, or empty."""
    text: str = ""
    """Document: Markdown.  Golden question: the question."""
    title: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)
    """(role, content) of a conversation."""
    context: list[str] = field(default_factory=list)
    document_ids: list[str] = field(default_factory=list)
    language: str = ""
    group: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def record_id(self) -> str:
        """Path, '#', row id: stable as long as the row has an id or its place."""
        return f"{self.source}#{self.id or self.row}" if self.row else self.source


def recognise(row: Row, source: str, number: int, config: DataPrepConfig) -> Raw | None:
    """The raw record of a row; None when its columns say nothing to us.

    Raises:
        UnusableRow: the columns are known, but what they hold cannot be used.
    """
    raw = Raw(kind="document", source=source, row=number, id=_scalar(_first(row, IDS)))
    raw.language = _scalar(row.get("language") or row.get("lang"))[:2].lower()
    raw.group = _scalar(row.get(config.group_column))
    if name := _present(row, DIALOGUE):
        return _dialogue(raw, row, name, config)
    if row.get("document_ids") is not None and (name := _present(row, ("question", "query"))):
        raw.kind, raw.text = "golden", _scalar(row[name])
        raw.document_ids = [_scalar(item) for item in _listed(row["document_ids"], "document_ids") if _scalar(item)]
        return raw
    if pair := _pair(row, config):
        question, answer = pair
        raw.kind = "conversation"
        raw.turns = [("user", _scalar(row[question])), ("assistant", _scalar(row[answer]))]
        raw.context = _context(row)
        raw.metadata = _metadata(row, {question, answer, "context", config.group_column})
        return raw
    if name := _present(row, TEXT):
        raw.text, raw.title = _scalar(row[name]), _scalar(row.get("title"))
        raw.metadata = _metadata(row, {name, "title"})
        return raw
    return None


def _dialogue(raw: Raw, row: Row, name: str, config: DataPrepConfig) -> Raw:
    raw.kind = "conversation"
    for turn in _listed(row[name], name):
        if not isinstance(turn, dict):
            raise UnusableRow(f"{name!r} holds something else than objects with a role and content")
        role = _scalar(turn.get("role") or turn.get("from")).lower()
        if role not in ROLES:
            raise UnusableRow(f"a turn has the role {role[:30]!r}; known are {', '.join(ROLES)}")
        raw.turns.append((ROLES[role], _scalar(turn.get("content", turn.get("value")))))
    raw.context = _context(row)
    raw.metadata = _metadata(row, {name, "context", config.group_column})
    return raw


def _pair(row: Row, config: DataPrepConfig) -> tuple[str, str] | None:
    configured = [(config.question_column, config.answer_column)] if config.question_column else []
    return next((pair for pair in [*configured, *PAIRS] if pair[0] in row and pair[1] in row), None)


def _context(row: Row) -> list[str]:
    value = row.get("context")
    if value is None or value == "":
        return []
    return [text for item in _listed(value, "context") if (text := _scalar(item))]


def _listed(value: Any, name: str) -> list[Any]:
    """A list; CSV files hold it as JSON, or as one plain value."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return [value] if value.strip() else []
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UnusableRow(f"{name!r} is not a JSON list") from error
    if not isinstance(value, list):
        raise UnusableRow(f"{name!r} is a {type(value).__name__}, not a list")
    return value


def _metadata(row: Row, used: set[str]) -> dict[str, str]:
    """Other short, plain columns; those of a ``metadata`` object count as columns.

    Raises:
        UnusableRow: ``access`` names no usable labels; without them everybody could read the record.
    """
    known = used | {*IDS, "language", "lang"}
    inner = row.get("metadata")
    columns = {**row, **(inner if isinstance(inner, dict) else {})}
    texts = {name: _scalar(value) for name, value in columns.items() if name not in known}
    try:
        texts |= access_of(columns)
    except ValueError as error:
        raise UnusableRow(str(error)) from error
    return {name: text for name, text in sorted(texts.items()) if text and len(text) <= MAX_METADATA_CHARS}


def access_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """The field ``access`` as one text of labels, also where it is a list; nothing where there is none.

    Raises:
        ValueError: it is there and is no text or list of texts, or names no usable label: a record that was to be
            restricted must not become public.
    """
    value = fields.get("access")
    if value is None or value == "":
        return {}
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError(f"access is {str(value)[:60]!r}, not a label or a list of labels")
    text = ", ".join(access_labels(",".join(parts)))
    if len(text) > MAX_METADATA_CHARS:
        raise ValueError(f"access has more than {MAX_METADATA_CHARS} characters of labels: name fewer groups")
    return {"access": text}


def _first(row: Row, names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _present(row: Row, names: Iterable[str]) -> str:
    return next((name for name in names if row.get(name) is not None), "")


def _scalar(value: Any) -> str:
    """Plain values as text; lists and objects as nothing."""
    if value is None or isinstance(value, (list, dict)):
        return ""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return str(value)
