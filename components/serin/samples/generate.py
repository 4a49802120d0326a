"""Writes the sample source: documents of the fictional retailer Fauvette, and conversations about them.

The documents are committed.  The conversations are made here: each question comes from a phrasing family (its
``group``), and each answer quotes passages as they read on some day in the past, so that values differ between
conversations about the same thing.  A model cannot learn them by heart; it has to read them from the passage.

    python -m serin.samples.generate TARGET
"""

import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from serin.core.errors import ConfigError
from serin.core.records import Conversation, GoldenQuestion, Message, read_jsonl, write_jsonl
from serin.samples.flaws import add_flaws
from serin.samples.passages import DOCUMENTS, Passage, Past, load_passages

HERE = Path(__file__).parent
FRENCH_FRACTION = 0.08
OTHER_WEIGHT = 3
MIN_CONVERSATIONS = 100
WEIGHTS = {
    "price": 22, "stock": 18, "colours": 12, "size": 10, "shipping": 10, "warranty": 10, "price-and-stock": 8,
    "return-period": 8, "refund": 5, "delivery-charge": 6, "delivery-time": 6, "delivery-free": 5,
    "store-opens": 6, "store-closes": 6, "store-closed-on": 5, "store-address": 5,
    "promo-discount": 6, "promo-end": 6, "promo-start": 6,
    "follow-up": 20, "unknown": 6, "unknown-goods": 6, "unknown-product": 5, "missing": 6, "greeting": 4, "thanks": 4,
}  # fmt: skip
"""How often each kind of conversation occurs; kinds that are not named have ``OTHER_WEIGHT``."""


@dataclass(frozen=True)
class SampleSummary:
    """What ``write_samples`` wrote."""

    documents: int
    conversations: int
    golden_questions: int
    flaws: dict[str, int]
    """Rows that data preparation should mend or drop, by kind; part of ``conversations``."""


@dataclass(frozen=True)
class Line:
    """A question, its answer, and the passages in between."""

    kind: str
    group: str
    turns: tuple[str, ...]
    context: tuple[str, ...]


def write_samples(target: Path, seed: int = 7, num_conversations: int = 5000) -> SampleSummary:
    """Write documents, conversations and golden questions below a folder; same arguments, same bytes.

    Args:
        target: folder; its ``documents``, ``conversations`` and ``golden`` are replaced.
        seed: of the random choices.
        num_conversations: how many are made, before the flawed copies are added.

    Raises:
        ConfigError: fewer conversations are asked for than the phrasing families need.
    """
    if num_conversations < MIN_CONVERSATIONS:
        raise ConfigError(f"{num_conversations} conversations are too few: ask for at least {MIN_CONVERSATIONS}.")
    for name in ("documents", "conversations", "golden"):
        shutil.rmtree(target / name, ignore_errors=True)
    shutil.copytree(DOCUMENTS, target / "documents")
    rng = random.Random(seed)  # noqa: S311
    conversations, flaws = add_flaws(make_conversations(rng, num_conversations), rng)
    for quarter in range(4):
        part = [c for c in conversations if (int(c.metadata["date"][5:7]) - 1) // 3 == quarter]
        write_jsonl(target / "conversations" / f"2025-q{quarter + 1}.jsonl", part)
    golden = read_jsonl(HERE / "golden.jsonl", GoldenQuestion)
    write_jsonl(target / "golden" / "golden.jsonl", golden)
    return SampleSummary(len(load_passages()), len(conversations), len(golden), flaws)


def make_conversations(rng: random.Random, count: int) -> list[Conversation]:
    """Clean conversations, in the order of their dates."""
    speakers = {language: Speaker(language, rng) for language in ("en", "fr")}
    days = sorted(rng.randrange(365) for _ in range(count))
    conversations = []
    for number, day in enumerate(days):
        language = "fr" if rng.random() < FRENCH_FRACTION else "en"
        line = speakers[language].line()
        roles = ("user", "assistant") * (len(line.turns) // 2)
        conversations.append(
            Conversation(
                id=f"chat-{number:05d}",
                messages=tuple(Message(role=r, content=t) for r, t in zip(roles, line.turns, strict=True)),
                context=line.context,
                language=language,
                group=line.group,
                metadata={"date": str(date(2025, 1, 1) + timedelta(days=day)), "intent": line.kind},
            )
        )
    return conversations


class Speaker:
    """Makes up dialogues in one language."""

    def __init__(self, language: str, rng: random.Random) -> None:
        self._language, self._rng = language, rng
        self._phrasings: dict[str, Any] = json.loads((HERE / "phrasings.json").read_text(encoding="utf-8"))[language]
        self._passages = load_passages()
        self._past = Past(self._passages)
        self._facts: dict[str, Any] = self._phrasings["facts"]
        self._others: dict[str, Any] = self._phrasings["other"]
        for spec in (*self._facts.values(), *self._others.values()):
            spec["questions"] = _phrasings(spec, spec.get("frames", self._phrasings["frames"]))
        self._kinds = [*self._facts, *self._others, *(["follow-up", "missing"] if language == "en" else [])]

    def line(self) -> Line:
        """The next dialogue."""
        kind = self._rng.choices(self._kinds, [WEIGHTS.get(kind, OTHER_WEIGHT) for kind in self._kinds])[0]
        makers: dict[str, Callable[[], Line]] = {"follow-up": self._follow_up, "missing": self._missing}
        if kind in makers:
            return makers[kind]()
        return self._fact(kind) if kind in self._facts else self._other(kind)

    def _fact(self, kind: str) -> Line:
        spec, now = self._facts[kind], self._some(self._facts[kind]["folder"])
        number, question = self._pick(spec["questions"])
        turns = (self._politely(question.format(subject=now.subject)), _answer(spec, now))
        return Line(kind, f"{kind}/{self._language}/{number:02d}", turns, self._context(now))

    def _follow_up(self) -> Line:
        """Two or three questions about one product, which only the first one names."""
        number, opening = self._pick(self._phrasings["first_turns"])
        now, asked = self._some("catalogue"), self._phrasings["follow_up"]
        kinds = self._rng.sample([kind for kind in asked if kind != opening["kind"]], self._rng.choice((1, 2)))
        turns = [opening["question"].format(subject=now.subject), _answer(self._facts[opening["kind"]], now)]
        for kind in kinds:
            turns += [asked[kind][number], _answer(self._facts[kind], now)]
        return Line("follow-up", f"follow-up/{self._language}/{number:02d}", tuple(turns), self._context(now))

    def _missing(self) -> Line:
        """A question that the documents could answer, but not the passages at hand."""
        kind = self._rng.choice([kind for kind in self._facts if kind in WEIGHTS])
        number, question = self._pick(self._facts[kind]["questions"])
        asked = self._some(self._facts[kind]["folder"])
        turns = (self._politely(question.format(subject=asked.subject)), self._others["unknown"]["answer"])
        return Line("missing", f"{kind}/{self._language}/{number:02d}", turns, self._unrelated(asked))

    def _other(self, kind: str) -> Line:
        spec = self._others[kind]
        number, question = self._pick(spec["questions"])
        asked = self._some("catalogue")
        context = self._context(asked) if "{subject}" in question else self._unrelated(asked)
        question = question.format(subject=asked.subject)
        turns = (self._politely(question) if question[-1] in "?." else question, spec["answer"])
        return Line(kind, f"{kind}/{self._language}/{number:02d}", turns, context)

    def _some(self, folder: str) -> Passage:
        found = [passage for passage in self._passages if passage.id.startswith(f"documents/{folder}")]
        return self._past.of(self._rng.choice(found), self._rng)

    def _pick(self, choices: list[Any]) -> tuple[int, Any]:
        number = self._rng.randrange(len(choices))
        return number, choices[number]

    def _context(self, right: Passage) -> tuple[str, ...]:
        """The right passage: alone, first, or (seldom) second, beside one of the same kind or of any."""
        chance = self._rng.random()
        if chance < 0.2:
            return (right.text,)
        other = self._other_passage(right, near=self._rng.random() < 0.6)
        return (right.text, other.text) if chance < 0.93 else (other.text, right.text)

    def _unrelated(self, asked: Passage) -> tuple[str, ...]:
        return tuple(self._elsewhere(asked).text for _ in range(self._rng.choice((0, 1, 2, 2))))

    def _elsewhere(self, passage: Passage) -> Passage:
        """A passage about something else altogether."""
        while True:
            if (found := self._some("")).area != passage.area:
                return found

    def _other_passage(self, passage: Passage, near: bool) -> Passage:
        """Another passage, of the same folder or of any."""
        folder = passage.folder.removeprefix("documents/") if near else ""
        while True:
            if (found := self._some(folder)).id != passage.id:
                return found

    def _politely(self, question: str) -> str:
        opener = self._rng.choice(self._phrasings["openers"])
        if opener.endswith((", ", ": ")) and not question.startswith("I "):
            question = question[0].lower() + question[1:]
        text = opener + question + self._rng.choice(self._phrasings["closers"])
        return text.lower() if self._rng.random() < 0.03 else text


def _phrasings(spec: dict[str, Any], frames: dict[str, list[str]]) -> list[str]:
    """All ways to ask one thing: those written for it, and its nouns and clauses in frames."""
    framed = [
        frame.replace("{ask}", ask) for form, found in frames.items() for ask in spec.get(form, ()) for frame in found
    ]
    return list(dict.fromkeys([*spec["questions"], *framed]))


def _answer(spec: dict[str, Any], passage: Passage) -> str:
    template = spec["zero"] if "zero" in spec and passage.fields["Stock"] == "0" else spec["answer"]
    for name, value in passage.fields.items():
        template = template.replace("{" + name + "}", value)
    subject = passage.subject
    return template.replace("{subject}", subject).replace("{Subject}", subject[0].upper() + subject[1:])


def _main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise ConfigError("Name one folder to write to: python -m serin.samples.generate TARGET")
    summary = write_samples(Path(arguments[0]))
    sys.stdout.write(json.dumps(asdict(summary), indent=1) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
