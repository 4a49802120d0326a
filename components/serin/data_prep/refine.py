"""From raw records to clean ones: text repaired, personal data masked, duplicates and leaks removed, split."""

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from serin.core.pii import find_pii, mask_pii
from serin.core.records import SPLITS, Conversation, Document, GoldenQuestion, Message
from serin.data_prep.cleaning import (
    clean_line,
    clean_markdown,
    has_placeholder,
    placeholders_as_words,
    repair_mojibake,
)
from serin.data_prep.config import DataPrepConfig
from serin.data_prep.duplicates import find_duplicates
from serin.data_prep.languages import LanguageDetector
from serin.data_prep.loading import Loaded, Rejection, rejection
from serin.data_prep.pages import check_dates, title_of
from serin.data_prep.rows import Raw
from serin.data_prep.splits import leaked, split, template_of

Progress = Callable[[str, float | None], None]
DATES = ("date", "time", "timestamp", "created_at")
"""Columns of a conversation's day, the first that is there; ISO 8601."""
ISO_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Refined:
    """What is written."""

    documents: list[Document]
    splits: dict[str, list[Conversation]]
    golden: list[GoldenQuestion]
    rejected: list[Rejection]
    skipped: dict[str, str]
    files: dict[str, dict[str, int]]
    statistics: dict[str, Any]


@dataclass
class _State:
    """What is gathered on the way."""

    config: DataPrepConfig
    detector: LanguageDetector
    rejected: list[Rejection]
    masked: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    filled: int = 0
    ids: set[str] = field(default_factory=set)

    def reject(self, raw: Raw, reason: str, detail: str = "") -> None:
        self.rejected.append(rejection(raw, reason, detail))


def refine(loaded: Loaded, config: DataPrepConfig, progress: Progress) -> Refined:
    """Clean, mask, remove duplicates and split; every record that is dropped is listed with the reason.

    Raises:
        InputError: a validity date of a document cannot be used.
    """
    state = _State(config, LanguageDetector(config.default_language), list(loaded.rejected))
    raw: dict[str, list[Raw]] = {"document": [], "conversation": [], "golden": []}
    for record in loaded.records:
        raw[record.kind].append(record)
    progress(f"cleaning {len(raw['document'])} documents", 0.62)
    documents, aliases = _documents(raw["document"], state)
    published = {text for document in documents for text in _personal(document.text)}
    progress(f"cleaning {len(raw['conversation'])} conversations", 0.7)
    conversations = _conversations(raw["conversation"], published, state)
    progress(f"splitting {len(conversations)} conversations", 0.95)
    splits = _split(conversations, state)
    golden = _golden(raw["golden"], documents, aliases, state)
    return Refined(
        documents=documents,
        splits=splits,
        golden=golden,
        rejected=state.rejected,
        skipped=loaded.skipped,
        files=loaded.files,
        statistics=_statistics(documents, splits, golden, state),
    )


def _documents(raws: list[Raw], state: _State) -> tuple[list[Document], dict[str, str]]:
    """Documents, and the ids of removed duplicates with the id that stands for them."""
    kept: list[tuple[Raw, Document]] = []
    for raw in raws:
        check_dates(raw)
        text = _clean(raw.text, clean_markdown, state)
        if state.config.mask_pii == "all":
            text = _masked(text, (), state)
        if not text:
            state.reject(raw, "no text")
            continue
        title = clean_line(raw.title) or title_of(text) or raw.record_id
        language = raw.language or state.detector.detect(f"{title}\n{text}")
        id_ = _unique(raw.record_id, raw, state)
        document = Document(id=id_, title=title, text=text, source=raw.source, language=language, metadata=raw.metadata)
        kept.append((raw, document))
    # A page that holds for other days is another fact, however alike the texts are.
    texts = [f"{document.text}\n{_validity(document)}" for _, document in kept]
    titles = [document.title for _, document in kept]
    repeated = find_duplicates(texts, state.config.document_similarity, titles)
    for i, duplicate in repeated.items():
        _reject_duplicate(kept[i][0], kept[duplicate.of][1].id, duplicate.exact, state)
    aliases = {kept[i][1].id: kept[duplicate.of][1].id for i, duplicate in repeated.items()}
    return [document for i, (_, document) in enumerate(kept) if i not in repeated], aliases


def _conversations(raws: list[Raw], published: Collection[str], state: _State) -> list[Conversation]:
    kept: list[tuple[Raw, Conversation]] = []
    for raw in raws:
        conversation = _conversation(raw, published, state)
        if conversation is not None:
            kept.append((raw, conversation))
    texts = ["\n".join(turn.content for turn in conversation.messages) for _, conversation in kept]
    repeated = find_duplicates(texts, state.config.near_duplicate_similarity)
    for i, duplicate in repeated.items():
        _reject_duplicate(kept[i][0], kept[duplicate.of][1].id, duplicate.exact, state)
    return [conversation for i, (_, conversation) in enumerate(kept) if i not in repeated]


def _conversation(raw: Raw, published: Collection[str], state: _State) -> Conversation | None:
    """The clean conversation, or None when it was rejected."""
    if outside := _outside_window(raw, state.config):
        state.reject(raw, outside)
        return None
    turns = [(role, _clean(content, clean_line, state)) for role, content in raw.turns]
    if state.config.placeholders == "reject" and any(has_placeholder(content) for _, content in turns):
        state.reject(raw, "unfilled placeholder")
        return None
    while turns and turns[-1][0] == "user":
        turns.pop()  # a last word that got no answer
    if problem := _problem(turns):
        state.reject(raw, problem)
        return None
    messages = tuple(
        Message.model_validate({"role": role, "content": _finished(content, published, state)})
        for role, content in _merged(turns)
    )
    language = raw.language or state.detector.detect("\n".join(message.content for message in messages))
    question = next(message.content for message in reversed(messages) if message.role == "user")
    context = tuple(text for passage in raw.context if (text := _clean(passage, clean_markdown, state)))
    return Conversation(
        id=_unique(raw.id or raw.record_id, raw, state),
        messages=messages,
        context=tuple(_masked(text, (), state) for text in context) if state.config.mask_pii == "all" else context,
        language=language,
        group=raw.group or template_of(question),
        metadata=raw.metadata,
    )


def _outside_window(raw: Raw, config: DataPrepConfig) -> str:
    """Why a conversation is not of the data window; empty when it is, or when there is none."""
    if not config.window_start and not config.window_end:
        return ""
    day = next((raw.metadata[name][:10] for name in DATES if name in raw.metadata), "")
    if not ISO_DAY.fullmatch(day):
        return "no date"
    inside = config.window_start <= day and (not config.window_end or day < config.window_end)
    return "" if inside else "outside the data window"


def _problem(turns: list[tuple[str, str]]) -> str:
    if not any(role == "user" for role, _ in turns):
        return "no answer" if not turns else "no question"
    if not any(role == "assistant" for role, _ in turns) or not turns[-1][1]:
        return "no answer"
    return "empty turn" if not all(content for _, content in turns) else ""


def _merged(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Turns of one speaker in a row as one, since chat templates alternate."""
    merged: list[tuple[str, str]] = []
    for role, content in turns:
        if merged and merged[-1][0] == role:
            merged[-1] = (role, f"{merged[-1][1]}\n{content}")
        else:
            merged.append((role, content))
    return merged


def _split(conversations: list[Conversation], state: _State) -> dict[str, list[Conversation]]:
    splits = split(conversations, state.config)
    gone = leaked(splits)
    for name in SPLITS:
        for conversation in splits[name]:
            if conversation.id in gone:
                state.rejected.append(
                    {
                        "source": "",
                        "row": 0,
                        "kind": "conversation",
                        "id": conversation.id,
                        "reason": "question of another split",
                        "detail": f"in {name}, asked word for word in {gone[conversation.id]}",
                    }
                )
    return {name: [c for c in rows if c.id not in gone] for name, rows in splits.items()}


def _golden(raws: list[Raw], documents: list[Document], aliases: dict[str, str], state: _State) -> list[GoldenQuestion]:
    """Golden questions; a document may be named by its id, or by a row id that only one document has."""
    known = {document.id: document.id for document in documents} | aliases
    for id_ in list(known):
        short = id_.rpartition("#")[2]
        known[short] = "" if short in known and short != id_ else known[id_]
    golden = []
    for raw in raws:
        question = clean_line(raw.text)
        missing = [name for name in raw.document_ids if not known.get(name)]
        if not question or not raw.document_ids:
            state.reject(raw, "no question" if not question else "no document ids")
        elif missing:
            state.reject(raw, "unknown document", missing[0])
        else:
            ids = tuple(dict.fromkeys(known[name] for name in raw.document_ids))
            id_ = _unique(raw.id or raw.record_id, raw, state)
            language = raw.language or state.detector.detect(question)
            golden.append(GoldenQuestion(id=id_, question=question, document_ids=ids, language=language))
    return golden


def _clean(text: str, clean: Callable[[str], str], state: _State) -> str:
    state.repaired += repair_mojibake(text) != text
    return clean(text)


def _finished(text: str, published: Collection[str], state: _State) -> str:
    if state.config.placeholders == "words" and has_placeholder(text):
        state.filled += 1
        text = placeholders_as_words(text)
    return text if state.config.mask_pii == "none" else _masked(text, published, state)


def _masked(text: str, keep: Collection[str], state: _State) -> str:
    masked, counts = mask_pii(text, keep)
    state.masked.update(counts)
    return masked


def _personal(text: str) -> list[str]:
    return [text[match.start : match.end] for match in find_pii(text)]


def _validity(document: Document) -> str:
    return " ".join(document.metadata.get(name, "") for name in ("valid_from", "valid_until"))


def _unique(id_: str, raw: Raw, state: _State) -> str:
    """The id, made unique by the record's place when another record took it."""
    key = f"{raw.kind}:{id_}"
    if key in state.ids:
        id_ = f"{raw.source}#{raw.row}~{id_}"
        key = f"{raw.kind}:{id_}"
    state.ids.add(key)
    return id_


def _reject_duplicate(raw: Raw, kept: str, exact: bool, state: _State) -> None:
    state.reject(raw, "duplicate" if exact else "near duplicate", f"of {kept}")


def _statistics(
    documents: list[Document],
    splits: dict[str, list[Conversation]],
    golden: list[GoldenQuestion],
    state: _State,
) -> dict[str, Any]:
    conversations = [conversation for rows in splits.values() for conversation in rows]
    reasons = Counter(str(row["reason"]) for row in state.rejected)
    return {
        "splits": {name: len(rows) for name, rows in splits.items()},
        "groups": {name: len({conversation.group for conversation in rows}) for name, rows in splits.items()},
        "golden": len(golden),
        "languages": dict(Counter(conversation.language for conversation in conversations).most_common()),
        "document_languages": dict(Counter(document.language for document in documents).most_common()),
        "rejected": dict(reasons.most_common()),
        "masked": dict(sorted(state.masked.items())),
        "repaired_texts": state.repaired,
        "filled_placeholders": state.filled,
    }
