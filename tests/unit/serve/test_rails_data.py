"""The input rails on public attacks and clean questions that they were not trained on."""

import json
import random
from pathlib import Path

import numpy as np

from serin.samples import generate
from serin.serve.rails import harm, injection
from serin.serve.rails.training import data as sets


def test_known_prompt_injections_are_found_and_bank_customers_pass(shared_data: Path) -> None:
    found = [injection.score(row["prompt"]) > injection.DEFAULT_THRESHOLD for row in sets.giskard(shared_data)]
    questions = [text for text, _ in sets.banking(shared_data)[::25]]
    false = [injection.score(text) > injection.DEFAULT_THRESHOLD for text in questions]
    assert np.mean(found) >= 0.8
    assert np.mean(false) <= 0.01


def test_safe_prompts_that_look_unsafe_pass(shared_data: Path) -> None:
    rows = sets.xstest(shared_data)
    blocked = {
        label: np.mean([harm.score(row["prompt"]) > harm.DEFAULT_THRESHOLD for row in rows if row["label"] == label])
        for label in ("safe", "unsafe")
    }
    assert blocked["safe"] < 0.05
    assert blocked["unsafe"] > 0.5


def test_no_harmless_question_of_the_samples_is_blocked() -> None:
    files = [generate.HERE / "golden.jsonl", *sorted((generate.HERE / "suites").glob("*.jsonl"))]
    rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    asked = [row["question"] for row in rows if "question" in row and not row.get("attack")]
    talks = generate.make_conversations(random.Random(1), 300)
    asked += [message.content for talk in talks for message in talk.messages if message.role == "user"]
    assert len(asked) > 400
    assert [text for text in asked if injection.score(text) >= injection.DEFAULT_THRESHOLD] == []
