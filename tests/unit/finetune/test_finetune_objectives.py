"""What training minimises, and that it learns it."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from lamps import Inputs, conversation
from typer.testing import CliRunner

from serin.core.artifacts import Built
from serin.core.digests import digest_of_file
from serin.core.errors import InputError
from serin.core.events import EndpointEvent, read_events, write_events
from serin.core.prompts import Prompt
from serin.core.records import Message, write_jsonl
from serin.core.storage import storage_for
from serin.finetune.config import PhaseConfig
from serin.finetune.data import SampleFile, encode_conversations, encode_texts, save_pairs, save_samples
from serin.finetune.job import MERGED, Job
from serin.finetune.loop import train
from serin.finetune.objectives import ObjectiveSpec, add_reference, loss_function, margins_of
from serin.finetune.preferences import (
    PREFERENCES,
    Preference,
    encode_preferences,
    load_preferences,
    passages_of,
    preferences_from_events,
    require_pairs,
)

# MLflow 3.17 with SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
DPO = ObjectiveSpec(kind="dpo", beta=0.5)


def preference(number: int) -> Preference:
    """A polite answer is better than a rude one."""
    return Preference(
        id=f"p{number}",
        messages=(Message(role="user", content=f"What does lamp {number} cost?"),),
        chosen=f"Lamp {number} costs {number + 7} EUR.",
        rejected="No idea, look it up." if number % 2 else "Ask somebody else about lamps, EUR or not.",
    )


def event(number: int, feedback: int | None, answer: str, question: str = "Price of lamp 1?", **more: Any) -> Any:
    """An endpoint's event in the order of its number."""
    values = {
        "trace_id": f"{number:032x}",
        "time": f"2026-01-01T00:00:{number:02d}Z",
        "session_id": "s",
        "endpoint": "assistant",
        "release_id": "r",
        "track": "champion",
        "status": 200,
        "question": question,
        "answer": answer,
        "finish_reason": "stop",
        "feedback": feedback,
    }
    return EndpointEvent.model_validate({**values, **more})


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32, attn_implementation="eager")
    return loaded.eval().requires_grad_(False)


@pytest.fixture
def samples(tokenizer: Any, tmp_path: Path) -> SampleFile:
    chats = [conversation(number, passages=1 + number % 3) for number in range(6)]
    save_samples(tmp_path / "samples", encode_conversations(tokenizer, chats, Prompt(), 256).samples)
    return SampleFile(tmp_path / "samples")


@pytest.fixture
def pairs_file(tokenizer: Any, tmp_path: Path) -> Path:
    path = tmp_path / "pairs.safetensors"
    save_pairs(path, encode_preferences(tokenizer, map(preference, range(6)), Prompt(), 256).pairs)
    return path


def test_split_whole_and_packed_losses_are_the_same(model: Any, samples: SampleFile) -> None:
    rows = range(len(samples))
    losses = [
        loss_function(ObjectiveSpec(), model, precision="fp32", is_split=is_split, packed=packed)(samples, rows)
        for is_split in (False, True)
        for packed in (False, True)
    ]
    for loss, count in losses:
        assert float(count) == samples.num_learned()
        assert float(loss) == pytest.approx(float(losses[0][0]), rel=1e-5)


def test_a_packed_sample_never_sees_its_neighbour(model: Any, samples: SampleFile) -> None:
    loss = loss_function(ObjectiveSpec(), model, precision="fp32", packed=True)
    alone = [float(loss(samples, [row])[0]) for row in range(3)]
    assert float(loss(samples, [2, 0, 1])[0]) == pytest.approx(sum(alone), rel=1e-5)


def test_no_rows_are_no_loss_without_a_gradient(model: Any, samples: SampleFile) -> None:
    for spec in (ObjectiveSpec(), DPO):
        loss, count = loss_function(spec, model, precision="fp32")(samples, [])
        assert (float(loss), float(count), loss.requires_grad) == (0.0, 0.0, False)


def test_pretraining_learns_every_token_of_a_text(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    texts = encode_texts(tokenizer, ["Lamp 1 costs 8 EUR."], 64)
    save_samples(tmp_path / "texts", texts)
    _, count = loss_function(ObjectiveSpec(kind="pretrain"), model, precision="fp32")(
        SampleFile(tmp_path / "texts"), [0]
    )
    assert int(count) == len(texts[0].ids) - 1


def test_a_pair_is_as_long_as_both_answers_and_learns_answers_only(tokenizer: Any, pairs_file: Path) -> None:
    encoded = encode_preferences(tokenizer, [preference(0)], Prompt(), 256).pairs[0]
    learned = [token for token, flag in zip(encoded.chosen.ids, encoded.chosen.learned, strict=True) if flag]
    assert tokenizer.decode(learned) == "Lamp 0 costs 7 EUR.<|end|>"
    lengths = SampleFile(pairs_file).lengths
    assert len(lengths) == 6
    assert lengths[0] == len(encoded.chosen.ids) + len(encoded.rejected.ids)


@pytest.mark.parametrize("packed", [False, True])
def test_the_reference_itself_has_no_margin_and_the_loss_of_a_coin(model: Any, pairs_file: Path, packed: bool) -> None:
    add_reference(pairs_file, model, pairs=4)
    pairs = SampleFile(pairs_file)
    loss, count = loss_function(DPO, model, precision="fp32", is_split=True, packed=packed)(pairs, range(6))
    assert float(loss / count) == pytest.approx(math.log(2), abs=1e-4)
    assert margins_of(model, pairs, range(6)).abs().max() < 1e-3


def test_the_reference_is_the_sum_of_the_answer_s_log_probabilities(
    model: Any, tokenizer: Any, pairs_file: Path
) -> None:
    add_reference(pairs_file, model)
    [pair] = encode_preferences(tokenizer, [preference(3)], Prompt(), 256).pairs
    with torch.no_grad():
        scores = model(torch.tensor([pair.rejected.ids])).logits[0].log_softmax(-1)
    learned = [at for at, flag in enumerate(pair.rejected.learned) if flag]
    expected = sum(float(scores[at - 1, pair.rejected.ids[at]]) for at in learned)
    assert float(SampleFile(pairs_file).reference([3])[0, 1]) == pytest.approx(expected, rel=1e-4)


def test_pairs_without_their_reference_are_refused(model: Any, pairs_file: Path) -> None:
    with pytest.raises(InputError, match="run add_reference with the base first"):
        loss_function(DPO, model, precision="fp32")(SampleFile(pairs_file), [0])


def test_samples_of_another_objective_are_refused(model: Any, samples: SampleFile, pairs_file: Path) -> None:
    with pytest.raises(InputError, match="these samples are single"):
        loss_function(DPO, model, precision="fp32")(samples, [0])
    with pytest.raises(InputError, match="holds pairs and the objective needs single samples"):
        loss_function(ObjectiveSpec(), model, precision="fp32")(SampleFile(pairs_file), [0])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_dpo_prefers_the_better_answers_of_questions_it_never_saw(
    model: Any, tokenizer: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    files = {"train": range(32), "validation": range(40, 48)}
    for name, numbers in files.items():
        save_pairs(tmp_path / name, encode_preferences(tokenizer, map(preference, numbers), Prompt(), 256).pairs)
        add_reference(tmp_path / name, model)
    records: list[dict[str, Any]] = []
    job = Job(
        phase="fine-tuning",
        model=str(tiny_folder),
        train=str(tmp_path / "train"),
        validation=str(tmp_path / "validation"),
        folder=str(tmp_path / "job"),
        inputs={"train": digest_of_file(tmp_path / "train")},
        objective=DPO,
        optim=PhaseConfig(max_steps=20, tokens_per_batch=1000, learning_rate=3e-3),
        precision="fp32",
        threads=1,
        validation_interval=10,
    )
    result = train(job, report=records.append)
    tuned = AutoModelForCausalLM.from_pretrained(result / MERGED, dtype=torch.float32).eval()
    margins = margins_of(tuned, SampleFile(tmp_path / "validation"), range(8))
    assert (margins > 1.0).all()
    losses = [record["val_loss"] for record in records if record.get("val_loss") is not None]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < 0.5


def test_feedback_on_the_same_question_makes_pairs(tmp_path: Path) -> None:
    events = [
        event(1, 1, "8 EUR."),
        event(2, -1, "No idea.", question="  price of LAMP 1? "),
        event(3, None, "Perhaps."),
        event(4, -1, "", question=""),
        event(5, -1, "Write to <EMAIL>."),
        event(6, -1, "Cut", finish_reason="length"),
        event(7, 1, "Yes.", question="Open on Sunday?"),
        event(8, -1, "Hm.", guardrail_actions=("output:banned:mask",)),
    ]
    storage = storage_for(tmp_path.as_uri())
    write_events(storage, "assistant", events)
    made = preferences_from_events(read_events(storage, "assistant")).require()
    [pair] = made.preferences
    assert (pair.chosen, pair.rejected) == ("8 EUR.", "No idea.")
    assert made.summary() == {
        "pairs": 1,
        "events": 8,
        "used": 2,
        "unused": {
            "with an answer that was masked": 2,
            "without a like or a dislike": 1,
            "without stored text": 1,
            "failed, blocked or cut short": 1,
            "without an answer of the opposite rating": 1,
        },
    }


def test_feedback_is_added_to_a_dataset_once(inputs: Inputs) -> None:
    storage = inputs.store.storage
    events = [event(1, 1, "8 EUR."), event(2, -1, "No idea.")]
    write_events(storage, "assistant", events)
    first = command(inputs, "--dataset", inputs.dataset.uri)
    assert first["pairs"] == 1
    made = inputs.store.open(first["dataset"]["uri"])
    assert {*inputs.dataset.manifest.files, PREFERENCES} == set(made.manifest.files)
    assert [pair.chosen for pair in load_preferences(made.path)[0]] == ["8 EUR."]
    again = command(inputs, "--dataset", made.uri)
    assert again["dataset"]["digest"] == made.digest


def test_an_endpoint_without_feedback_adds_nothing(inputs: Inputs) -> None:
    with pytest.raises(InputError, match=r"None of 0 events makes a pair \(there are none\)"):
        command(inputs, "--dataset", inputs.dataset.uri)


def command(inputs: Inputs, *arguments: str) -> Any:
    from serin_pipelines.cli_finetune import app

    result = CliRunner().invoke(app, ["pairs", *arguments, "--store", inputs.store.uri, "--json"])
    if result.exception:
        raise result.exception
    return json.loads(result.stdout)


def test_an_answer_that_was_liked_and_disliked_says_nothing() -> None:
    made = preferences_from_events([event(1, 1, "8 EUR."), event(2, -1, "8 EUR."), event(3, None, "?")])
    with pytest.raises(InputError, match=r"None of 3 events makes a pair \(2 with an answer that was both"):
        made.require()


def test_one_question_gives_at_most_four_pairs_and_every_event_is_accounted_for() -> None:
    events = [event(number, 1 if number % 2 else -1, f"Answer {number}.") for number in range(20)]
    made = preferences_from_events(events)
    assert len(made.preferences) == 4
    assert made.num_used + sum(made.unused.values()) == 20
    assert made.preferences[0].chosen == "Answer 19."


def test_passages_are_those_of_the_liked_answer() -> None:
    events = [
        event(1, 1, "8 EUR.", retrieval_ids=("a",)),
        event(2, -1, "No idea.", retrieval_ids=("b",)),
        event(3, -1, "None.", retrieval_ids=("gone",)),
    ]
    made = preferences_from_events(events, {"a": "Lamp 1 costs 8 EUR.", "b": "Lamp 2 is red."})
    assert [pair.context for pair in made.preferences] == [("Lamp 1 costs 8 EUR.",)]
    assert made.unused == {"with passages that are no longer known": 1}


def test_passages_come_from_indexes_and_only_those_that_everybody_may_read(inputs: Inputs) -> None:
    import lancedb

    def build(output: Path, scratch: Path) -> Built:
        rows = [
            {"chunk_id": "a", "text": "Lamp 1 costs 8 EUR.", "access": []},
            {"chunk_id": "b", "text": "Lamp 1 costs us 2 EUR.", "access": ["sales"]},
        ]
        schema = pa.schema([("chunk_id", pa.string()), ("text", pa.string()), ("access", pa.list_(pa.string()))])
        lancedb.connect(output).create_table("chunks", pa.Table.from_pylist(rows, schema=schema))
        return Built(metadata={})

    context = inputs.context()
    index = context.produce("index", build, inputs={"documents": inputs.documents}, config={})
    assert passages_of([index]) == {"a": "Lamp 1 costs 8 EUR."}
    with pytest.raises(InputError, match=r"is no index: give the URI that 'serin index' prints"):
        passages_of([inputs.dataset])


def test_both_answers_of_a_long_pair_lose_the_same_context(tokenizer: Any) -> None:
    long = preference(1).model_copy(update={"context": ("Lamps are lamps. " * 60,)})
    encoded = encode_preferences(tokenizer, [long], Prompt(), 128)
    [pair] = encoded.pairs
    assert encoded.num_shortened == 1
    start = pair.chosen.learned.index(True)
    assert pair.chosen.ids[:start] == pair.rejected.ids[:start]


def test_pairs_that_are_all_too_long_are_refused(tokenizer: Any) -> None:
    huge = preference(1).model_copy(update={"chosen": "lamp " * 400})
    encoded = encode_preferences(tokenizer, [huge], Prompt(), 128)
    with pytest.raises(InputError, match="All 1 training pairs are longer than max_length=128 tokens"):
        require_pairs(encoded, 128)


def test_a_dataset_without_preferences_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dpo needs preferences\.jsonl in the dataset, which has none"):
        load_preferences(tmp_path)
    (tmp_path / PREFERENCES).write_text("")
    with pytest.raises(InputError, match="is empty"):
        load_preferences(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": " "}, "must both hold an answer"),
        ({"rejected": "Lamp 1 costs 8 EUR."}, "are the same answer"),
        ({"messages": []}, "must end with the user's question"),
        ({"score": 3}, "line 1, is not a Preference"),
    ],
)
def test_a_preference_that_says_nothing_is_refused_with_its_line(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    row = {**preference(1).model_dump(mode="json"), **changes}
    (tmp_path / PREFERENCES).write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        load_preferences(tmp_path)


def test_a_question_is_on_one_side_only(tmp_path: Path) -> None:
    every = [preference(number) for number in range(60)]
    write_jsonl(tmp_path / PREFERENCES, [*every, *(p.model_copy(update={"id": f"{p.id}b"}) for p in every)])
    train_side, held_out = load_preferences(tmp_path)
    assert len(train_side) + len(held_out) == 120
    assert held_out
    questions = [{p.messages[-1].content for p in side} for side in (train_side, held_out)]
    assert not questions[0] & questions[1]
