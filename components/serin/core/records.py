"""The records that stages hand to each other: documents and conversations.

On disk they are JSON lines inside an artefact.  A dataset artefact holds ``train.jsonl``, ``validation.jsonl``,
``test.jsonl`` (conversations) and, where the source has them, ``golden.jsonl`` (retrieval questions); a documents
artefact holds ``documents.jsonl``.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serin.core.errors import InputError

R = TypeVar("R", bound=BaseModel)
SPLITS = ("train", "validation", "test")


class Record(BaseModel):
    """A frozen record that ignores nothing: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Document(Record):
    """A text that answers may rest on."""

    id: str
    """Stable across runs: the path below the source, without its digest."""
    title: str
    text: str
    """Markdown."""
    source: str
    """The file that it came from, relative to the source."""
    language: str = "en"
    """ISO 639-1."""
    metadata: dict[str, str] = Field(default_factory=dict)


class Message(Record):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(Record):
    """A dialogue that ends with the assistant's answer; ``context`` is what the agent had before them."""

    id: str
    messages: tuple[Message, ...]
    context: tuple[str, ...] = ()
    """Passages that the answer rests on, as they read at that time; best first."""
    language: str = "en"
    """ISO 639-1."""
    group: str = ""
    """Conversations of one group (a template, a customer, a near-duplicate) never straddle two splits."""
    metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last user turn."""
        return next(m.content for m in reversed(self.messages) if m.role == "user")

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return self.messages[-1].content


class GoldenQuestion(Record):
    """A question with the documents that answer it."""

    id: str
    question: str
    document_ids: tuple[str, ...]
    language: str = "en"


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> int:
    """Write records as JSON lines; returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(record.model_dump_json() + "\n")
            count += 1
    return count


def read_jsonl(path: Path, kind: type[R]) -> list[R]:
    """Read records of one kind.

    Raises:
        InputError: the file is missing, or a line is not such a record (with its number).
    """
    return list(iter_jsonl(path, kind))


def iter_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Like ``read_jsonl``, one record at a time."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: run the stage that makes it.")
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield kind.model_validate(json.loads(line))
            except (json.JSONDecodeError, ValidationError) as error:
                raise InputError(f"{path}, line {number}, is not a {kind.__name__}: {error}") from error
