"""Public texts that the rails are trained, calibrated and tested on; see RAILS.md for which set serves what.

Every reader takes the folder that holds the data sets, each in a folder of its own.
"""

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from serin.serve.rails.sentences import sentences

_WORD = re.compile(r"\w+")
NEAR = 0.6
"""Share of common words from which a drawn text counts as a copy of a test text."""


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSONL file, gzipped or not."""
    for line in _read(path).splitlines():
        if line.strip():
            yield json.loads(line)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, gzipped or not."""
    return list(csv.DictReader(io.StringIO(_read(path), newline="")))


def medquad(data: Path) -> list[tuple[str, str]]:
    """Question and answer of NIH's health pages, each question once."""
    found: dict[str, str] = {}
    for row in read_jsonl(data / "medquad_nih_faq/qa_pairs.jsonl.gz"):
        found.setdefault(" ".join(row["question"].split()), row["answer"])
    return list(found.items())


def xquad(data: Path) -> dict[str, list[tuple[str, list[str]]]]:
    """Language -> paragraphs with their questions."""
    found = {}
    for path in sorted((data / "xquad_multilingual").glob("xquad.*.jsonl.gz")):
        rows = read_jsonl(path)
        found[path.name.split(".")[1]] = [(row["text"], [one["q"] for one in row["qas"]]) for row in rows]
    return found


def retail_turns(data: Path) -> list[str]:
    """What customers wrote in tau-bench's example conversations."""
    found = []
    for row in read_jsonl(data / "taubench_retail/dev/few_shot_conversations.jsonl.gz"):
        turns = re.split(r"\n(?=(?:user|assistant|tool): )", row["messages_display"])
        found += [turn[6:].strip() for turn in turns if turn.startswith("user: ")]
    return [turn for turn in found if turn and "###" not in turn]


def kubeflow(data: Path) -> list[str]:
    """Pages of Kubeflow's documentation."""
    rows = read_jsonl(data / "kubeflow_docs_history/dev/blobs.jsonl.gz")
    texts = (next((value for value in row.values() if isinstance(value, str) and len(value) > 400), "") for row in rows)
    return [text for text in texts if text]


def abcd(data: Path) -> list[str]:
    """A shop's guidelines for its agents."""
    return [row["text"] for row in read_jsonl(data / "abcd_retail_guidelines/policy_docs.jsonl")]


def clinc(data: Path, part: str) -> list[tuple[str, str]]:
    """(text, intent) of CLINC150: ``train``, ``val``, ``oos_train`` or ``oos_val``."""
    return [(row["text"], row["intent"]) for row in read_jsonl(data / f"clinc150_oos/dev/{part}.jsonl.gz")]


def banking(data: Path) -> list[tuple[str, str]]:
    """(text, category) of BANKING77."""
    return [(row["text"], row["category"]) for row in read_csv(data / "banking77/dev/train.csv.gz")]


def bitext(data: Path) -> list[tuple[str, str]]:
    """(instruction, response) of Bitext's customer support set."""
    rows = read_csv(data / "bitext_customer_support/dev/sft_dev.csv.gz")
    return [(row["instruction"], row["response"]) for row in rows]


def mtrag_questions(data: Path) -> list[str]:
    """All user turns of MTRAG, each once."""
    rows = read_jsonl(data / "mtrag_rag/dev/queries.jsonl")
    return list(dict.fromkeys(turn for row in rows for turn in (*row["previous_user_turns"], row["text"])))


def mtrag_passages(data: Path) -> list[tuple[str, str]]:
    """(collection, text) of MTRAG's passages."""
    return [(row["collection"], row["text"]) for row in read_jsonl(data / "mtrag_rag/corpus.jsonl.gz")]


def xstest(data: Path) -> list[dict[str, str]]:
    """Rows of XSTest: ``prompt``, ``type``, ``label``."""
    return read_csv(data / "xstest/dev/xstest_dev.csv")


def giskard(data: Path) -> list[dict[str, str]]:
    """Rows of Giskard's prompt injections: ``prompt``, ``group``, ``name``."""
    return read_csv(data / "prompt_injections_giskard/dev/prompt_injections_dev.csv")


def bipia_attacks(data: Path) -> dict[str, list[str]]:
    """Category -> instructions of BIPIA."""
    found: dict[str, list[str]] = json.loads(_read(data / "bipia_indirect_injection/dev/text_attack_train.json"))
    return found


def bipia_contexts(data: Path) -> list[str]:
    """BIPIA's e-mails."""
    return [row["context"] for row in read_jsonl(data / "bipia_indirect_injection/dev/email_train.jsonl.gz")]


def held_out() -> dict[str, list[str]]:
    """Hand-written turns that only judge the injection rail: ``clean``, ``attacks``, and a second list of each."""
    found: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("held_out.yaml").read_text(encoding="utf-8"))
    return found


def poison(context: str, instruction: str, place: str) -> str:
    """A passage with an instruction put at its ``start``, ``middle`` (after a sentence) or ``end``."""
    if place == "start":
        return f"{instruction}\n{context}"
    if place == "end":
        return f"{context}\n{instruction}"
    parts = sentences(context)
    middle = len(parts) // 2
    return " ".join((*parts[:middle], instruction, *parts[middle:]))


def seeded(seed: int) -> random.Random:
    """Draws that repeat; nothing secret hangs on them."""
    return random.Random(seed)  # noqa: S311


def sample(texts: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
    """At most ``count`` of the texts, in a drawn order."""
    return rng.sample(list(texts), min(count, len(texts)))


class Copies:
    """Knows the texts of the tests, so that no drawn text repeats one."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._sets = [frozenset(_WORD.findall(text.lower())) for text in texts]
        self._by_word: dict[str, list[int]] = {}
        for index, known in enumerate(self._sets):
            for word in known:
                self._by_word.setdefault(word, []).append(index)

    def holds(self, text: str) -> bool:
        """Whether a test text shares at least 0.6 of the words that either has."""
        mine = frozenset(_WORD.findall(text.lower()))
        common: dict[int, int] = {}
        for word in mine:
            for index in self._by_word.get(word, ()):
                common[index] = common.get(index, 0) + 1
        return any(count >= NEAR * (len(mine) + len(self._sets[i]) - count) for i, count in common.items())


def _read(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
