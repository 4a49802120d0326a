"""What changed between two releases, in words."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from serin.core.artifacts import ArtifactStore, Manifest
from serin.core.digests import digest_of_text
from serin.core.errors import SerinError
from serin.core.records import Document, read_jsonl
from serin.core.release import Release
from serin.core.storage import storage_for
from serin.core.verification import manifests_behind

MAX_NAMED = 5
MAX_SHOWN_CHARS = 100
DOCUMENTS = "documents.jsonl"


class Change(BaseModel):
    """One thing in which two releases differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    """data, model, index, prompt, guardrails, serving or code."""
    text: str
    """A sentence."""


def changes(first: Release, second: Release, store: ArtifactStore) -> list[Change]:
    """What is different in the second release, part by part; nothing for the same release.

    Parts that are gone from the store are compared by their digests alone.
    """
    found: list[Change] = []
    for part in ("data", "model", "index"):
        one, other = getattr(first, part), getattr(second, part)
        if one.digest != other.digest:
            found += [Change(part=part, text=text) for text in _artifact(part, one.uri, other.uri, store)]
    found += [Change(part="prompt", text=text) for text in _values(first.prompt.dump(), second.prompt.dump())]
    found += [Change(part="guardrails", text=text) for text in _values(first.guardrails, second.guardrails)]
    found += [Change(part="serving", text=text) for text in _values(first.serving, second.serving)]
    if first.code_version != second.code_version:
        found.append(Change(part="code", text=f"Code {first.code_version} became {second.code_version}."))
    return found


def _artifact(part: str, one: str, other: str, store: ArtifactStore) -> Iterator[str]:
    before, after = _manifest(one), _manifest(other)
    if before is None or after is None:
        gone = one if before is None else other
        yield f"The {part} is another one; {gone} cannot be read, so its digest is all that is known."
        return
    yield f"The {part} is another one: {before.digest[:12]} became {after.digest[:12]}."
    if before.kind != after.kind:
        yield f"It is a {after.kind} instead of a {before.kind}."
    yield from _values(_flat(before.config), _flat(after.config), "Setting ")
    yield from _values(_counts(before.metadata), _counts(after.metadata), "Its ")
    for name in sorted(set(before.inputs) & set(after.inputs)):
        if before.inputs[name] != after.inputs[name]:
            yield f"It was made from another {name}: {before.inputs[name][:12]} became {after.inputs[name][:12]}."
    if part == "index":
        yield from _documents(one, other, store)


def _documents(one: str, other: str, store: ArtifactStore) -> Iterator[str]:
    before, after = _texts(one, store), _texts(other, store)
    if before is None or after is None:
        return
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    for names, verb in ((after.keys() - before.keys(), "added"), (before.keys() - after.keys(), "removed")):
        if names:
            yield f"{_number(len(names), 'document')} {verb}: {_named(names)}."
    if changed:
        yield f"{_number(len(changed), 'document')} changed: {_named(changed)}."


def _texts(index_uri: str, store: ArtifactStore) -> dict[str, str] | None:
    """Document id to the digest of its text, of the documents that an index was built from; None when they are gone."""
    for uri, manifest in manifests_behind([index_uri]):
        if manifest is None or manifest.kind != "documents":
            continue
        try:
            records = read_jsonl(store.open(uri).path / DOCUMENTS, Document)
        except SerinError:
            return None
        return {record.id: digest_of_text(record.model_dump_json()) for record in records}
    return None


def _values(before: Mapping[str, Any], after: Mapping[str, Any], lead: str = "") -> Iterator[str]:
    one, other = _flat(before), _flat(after)
    for name in sorted({*one, *other}):
        if one.get(name) == other.get(name):
            continue
        if name not in one:
            yield f"{lead}{name} is new: {_shown(other[name])}."
        elif name not in other:
            yield f"{lead}{name} is gone; it was {_shown(one[name])}."
        else:
            yield f"{lead}{name} was {_shown(one[name])} and is {_shown(other[name])}."


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, their keys joined by dots; lists stay whole."""
    if not isinstance(value, Mapping):
        return {prefix.rstrip("."): value} if prefix else {}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.")
    return flat


def _counts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _flat(metadata).items() if isinstance(value, int | float)}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        counts = Counter(map(str, value))
        return f"{_number(len(value), 'entry', 'entries')} ({_named(counts)})" if value else "empty"
    text = " ".join(str(value).split())
    text = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
    return repr(text) if isinstance(value, str) else text


def _named(names: Any) -> str:
    listed = sorted(str(name) for name in names)
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(name[:MAX_SHOWN_CHARS] for name in listed[:MAX_NAMED]) + more


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _manifest(uri: str) -> Manifest | None:
    try:
        return Manifest.model_validate_json(storage_for(uri).read("manifest.json"))
    except (SerinError, ValueError):
        return None
