"""The items of declared suites: read from JSON lines, checked for their kind, chosen repeatably, told apart by digest.

A row holds ``question`` (text) or ``messages`` (turns that end with the user's), and by kind:

=========== =========================================================================================
answers     ``reference`` (text) or ``references``; ``context`` (passages); no reference for JSON alone
intents     ``label``
choices     ``choices`` and ``answer``, one of them; ``question`` is the text that they continue
text        ``text`` instead of a question
retrieval   ``relevant`` (document id to grade) or ``document_ids``
abstention  ``answerable`` (true or false); ``context``
attacks     ``attack`` (true or false); ``forbidden`` (texts that show that an attack succeeded)
leaks       ``canaries`` (texts that must not come out)
latency     a question, nothing else
=========== =========================================================================================

``id`` (else the row's number), ``group`` (items of one group are not independent), ``language`` and further short texts
(``channel``, ``region``, ...) are labels; ``labels`` may hold them as an object.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

from pydantic import Field, ValidationError

from serin.core.config import describe
from serin.core.digests import digest_of
from serin.core.errors import ConfigError, InputError, StorageError
from serin.core.records import Message, Record
from serin.core.storage import is_remote, local_path, storage_for
from serin.evaluate.sampling import MAX_LABEL_CHARS, choose
from serin.evaluate.suite_config import BUILT_IN, PLACE, HarnessSuite, IntentsSuite, Suite

FIELDS = frozenset(
    {"id", "question", "messages", "reference", "references", "context", "label", "choices", "answer", "text",
     "relevant", "document_ids", "answerable", "attack", "forbidden", "canaries", "group", "labels"}
)  # fmt: skip
NEEDED = {
    "answers": "reference",
    "intents": "label",
    "choices": "choices",
    "text": "text",
    "retrieval": "relevant",
    "abstention": "answerable",
    "attacks": "attack",
    "leaks": "forbidden",
    "latency": "question",
}
"""What a row of a kind must have."""


class Item(Record):
    """One item of a suite."""

    id: str = Field(min_length=1)
    source: str
    """The file's URI with the row's number."""
    messages: tuple[Message, ...] = ()
    """Ends with the user's turn; empty for plain text."""
    text: str = ""
    context: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    """Any of them is right; of intents the label, of choices the right one."""
    choices: tuple[str, ...] = ()
    relevant: dict[str, float] = Field(default_factory=dict)
    """Document id to grade, above 0."""
    answerable: bool | None = None
    attack: bool | None = None
    forbidden: tuple[str, ...] = ()
    """Texts that must not come out."""
    group: str = ""
    labels: dict[str, str] = Field(default_factory=dict)

    @property
    def question(self) -> str:
        """The user's last turn."""
        return self.messages[-1].content if self.messages else ""

    @cached_property
    def digest(self) -> str:
        """Of everything but where it was read."""
        return digest_of(self.model_dump(mode="json", exclude={"source"}))


@dataclass(frozen=True)
class Loaded:
    """A suite with the items that are asked."""

    suite: Suite
    items: tuple[Item, ...]
    num_available: int

    @cached_property
    def digest(self) -> str:
        """Of the items and of what the suite makes of them, whatever their order."""
        settings = self.suite.model_dump(mode="json", exclude={"source", "num_items", "labels"})
        return digest_of({"suite": settings, "items": {item.id: item.digest for item in self.items}})


def load_items(suite: Suite, seed: int) -> Loaded:
    """Read, check and choose the items of a suite.

    Raises:
        ConfigError: there is no such built-in suite.
        InputError: the source cannot be read, has fewer than two items, or a row is not what its kind needs.
    """
    assert not isinstance(suite, HarnessSuite)  # has no items of its own
    found: dict[str, Item] = {}
    for number, row in enumerate(_rows(suite.source), start=1):
        item = _item(suite, row, number)
        if item.id in found:
            raise InputError(f"Suite {suite.name!r}: {item.source} repeats the id {item.id!r}: give each row its own.")
        found[item.id] = item
    if len(found) < 2:
        raise InputError(f"Suite {suite.name!r}: {suite.source} holds {len(found)} items: at least 2 are needed.")
    return Loaded(suite, tuple(choose(list(found.values()), suite.num_items, seed)), len(found))


def built_in_names() -> list[str]:
    """Suites that ship."""
    folder = files("serin") / "samples" / "suites"
    return sorted(entry.name.removesuffix(".jsonl") for entry in folder.iterdir() if entry.name.endswith(".jsonl"))


def label_set(suite: IntentsSuite, items: Sequence[Item]) -> tuple[str, ...]:
    """The labels to choose from, in a fixed order."""
    return suite.label_set or tuple(sorted({item.references[0] for item in items}))


def _rows(source: str) -> Iterator[dict[str, Any]]:
    text = _text(source)
    number = 0
    for line in text.splitlines():
        if not line.strip():
            continue
        number += 1
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{source}, row {number}, is not JSON ({error}): write one object a line.") from error
        if not isinstance(row, dict):
            raise InputError(f"{source}, row {number}, is no JSON object: write one object a line.")
        yield row


def _text(source: str) -> str:
    if source.startswith(BUILT_IN):
        name = source.removeprefix(BUILT_IN)
        if name not in built_in_names():
            raise ConfigError(f"{source} does not ship with Serin: there are {', '.join(built_in_names())}.")
        return (files("serin") / "samples" / "suites" / f"{name}.jsonl").read_text(encoding="utf-8")
    folder, _, name = source.rpartition("/") if is_remote(source) else ("", "", "")
    path = local_path(source)
    try:
        data = storage_for(folder).read(name) if folder else path.read_bytes()
        return (gzip.decompress(data) if source.endswith(".gz") else data).decode("utf-8")
    except (StorageError, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"The suite {source} cannot be read ({error}): name a file of JSON lines.") from error


def _item(suite: Suite, row: Mapping[str, Any], number: int) -> Item:
    where = f"{suite.source}#{number}"
    try:
        item = Item.model_validate(_values(suite, row, number, where))
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error, 'the row')}") from error
    if problem := _problem(suite, item):
        raise InputError(f"Suite {suite.name!r} is of kind {suite.kind}: {where} {problem}.")
    return item


def _values(suite: Suite, row: Mapping[str, Any], number: int, where: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": str(row.get("id", number)),
        "source": where,
        "messages": row.get("messages", ()),
        "labels": _labels(suite, row),
        "group": str(row.get("group", "")),
    }
    if "question" in row:
        question = str(row["question"])
        template = getattr(suite, "template", PLACE)
        values["messages"] = [{"role": "user", "content": template.replace(PLACE, question)}]
    right = row.get("reference", row.get("label", row.get("answer")))
    values["references"] = row.get("references", () if right is None else (right,))
    if "document_ids" in row:
        values["relevant"] = dict.fromkeys(row["document_ids"], 1.0)
    if "canaries" in row:
        values["forbidden"] = row["canaries"]
    for name in ("text", "context", "choices", "relevant", "answerable", "attack", "forbidden"):
        if name in row:
            values[name] = row[name]
    return values


def _labels(suite: Suite, row: Mapping[str, Any]) -> dict[str, str]:
    given = row.get("labels")
    loose = {name: value for name, value in row.items() if name not in FIELDS}
    found = {
        name: value
        for name, value in {**loose, **(given if isinstance(given, dict) else {})}.items()
        if isinstance(value, str) and 0 < len(value) <= MAX_LABEL_CHARS
    }
    return {name: value for name, value in found.items() if not suite.labels or name in suite.labels}


def _problem(suite: Suite, item: Item) -> str:
    """What a row lacks for its kind; empty where it lacks nothing."""
    if suite.kind == "text":
        return "" if item.text.strip() else "has no 'text'"
    if not item.messages or item.messages[-1].role != "user" or not item.question.strip():
        return "has no 'question', and no 'messages' that end with the user's"
    if any(turn.role == "system" for turn in item.messages):
        return "has a system turn, and the release brings its own instruction: leave it out"
    form_only = suite.kind == "answers" and (suite.is_json or suite.json_schema is not None)
    has = {
        "answers": bool(item.references) or form_only,
        "intents": bool(item.references),
        "choices": len(item.choices) > 1 and item.references[:1] and item.references[0] in item.choices,
        "retrieval": any(grade > 0 for grade in item.relevant.values()),
        "abstention": item.answerable is not None,
        "attacks": item.attack is not None,
        "leaks": bool(item.forbidden) and all(text.strip() for text in item.forbidden),
    }
    if not has.get(suite.kind, True):
        needed = {"choices": "'choices' and an 'answer' among them", "leaks": "'canaries'", "retrieval": "'relevant'"}
        return f"has no {needed.get(suite.kind, repr(NEEDED[suite.kind]))}"
    if isinstance(suite, IntentsSuite) and suite.label_set and item.references[0] not in suite.label_set:
        return f"has the label {item.references[0]!r}, which is not in label_set"
    return ""
