"""A training on paper: what it needs, what it costs, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lamps import SMALL, MakeInputs, conversation
from typer.testing import CliRunner

from serin.core.artifacts import Artifact, ArtifactStore, Built
from serin.core.errors import ConfigError, InputError
from serin.core.prompts import Prompt
from serin.core.records import Message, write_jsonl
from serin.finetune.config import DevicePrice, FinetuneConfig
from serin.finetune.data import encode_conversations
from serin.finetune.plan import plan
from serin.finetune.preferences import PREFERENCES, Preference
from serin.finetune.schedule import num_steps_of

LAMP = DevicePrice(memory_gib=4.0, usd_per_hour=2.0, tflops=0.001)
PRICED = SMALL.model_copy(update={"prices": {"lamp": LAMP}})
MIDDLE = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
}


@pytest.fixture
def no_weights(tiny_folder: Path, tmp_path: Path) -> str:
    """The tiny base without its weights: a plan must not need them."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    (folder / "model.safetensors").unlink()
    return str(folder)


@pytest.fixture
def middle(no_weights: str) -> str:
    """A base of 15 M weights, again without them."""
    path = Path(no_weights) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **MIDDLE}))
    return no_weights


def with_memory(gib: float, **changes: Any) -> FinetuneConfig:
    """Settings for a full training with large batches on a device of that size."""
    values = {"method": "full", "tokens_per_batch": 8192, "max_length": 512, "max_steps": None, "precision": "bf16"}
    price = DevicePrice(memory_gib=gib)
    return FinetuneConfig.load({**values, "prices": {"lamp": price.dump()}, **changes})


def test_a_plan_of_tokens_counts_steps_time_and_cost(no_weights: str) -> None:
    made = plan(PRICED.model_copy(update={"max_steps": None, "epochs": 2.0}), no_weights, num_tokens=51_200)
    assert made.num_steps == 200
    assert made.tokens_trained == 102_400
    assert made.num_samples is None
    assert made.micro_batch == (4, 128)
    assert made.device == "lamp"
    assert made.fits is True
    assert made.hours is not None
    assert made.cost_usd == pytest.approx(2.0 * made.hours)
    assert 0 < made.num_trainable < made.num_parameters
    assert made.trainable_fraction == pytest.approx(made.num_trainable / made.num_parameters)
    parts = made.memory_gib.dump()
    assert parts.pop("total") == pytest.approx(sum(parts.values()), abs=1e-3)


def test_a_plan_of_a_dataset_counts_its_samples(make_inputs: MakeInputs, tokenizer: Any, no_weights: str) -> None:
    inputs = make_inputs()
    config = SMALL.model_copy(update={"max_steps": None})
    made = plan(config, no_weights, dataset=inputs.dataset)
    samples = encode_conversations(tokenizer, [conversation(n) for n in range(40)], Prompt(), 128).samples
    lengths = [len(sample.ids) for sample in samples]
    assert (made.num_samples, made.num_tokens) == (40, sum(lengths))
    assert made.num_steps == num_steps_of(lengths, config)
    assert made.micro_batch[1] == max(lengths)


def test_without_prices_time_and_cost_are_left_out_and_it_says_so(no_weights: str) -> None:
    made = plan(SMALL, no_weights, num_tokens=1000)
    assert (made.hours, made.cost_usd, made.fits, made.device) == (None, None, None, "")
    assert any("finetune.prices is empty" in note for note in made.notes)
    unpriced = plan(with_memory(4.0), no_weights_longer(no_weights), num_tokens=1000)
    assert (unpriced.hours, unpriced.cost_usd, unpriced.fits) == (None, None, True)
    assert any("no tflops" in note for note in unpriced.notes)


def no_weights_longer(folder: str) -> str:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 2048}))
    return folder


def test_the_tiny_base_can_be_planned_from_tokens_and_from_a_dataset(make_inputs: MakeInputs) -> None:
    by_tokens = plan(SMALL, "serin://tiny", num_tokens=1000)
    by_dataset = plan(SMALL, "serin://tiny", dataset=make_inputs().dataset)
    assert by_tokens.num_parameters == by_dataset.num_parameters
    assert any("pretraining of serin://tiny" in note for note in by_tokens.notes)


def test_documents_are_what_pretraining_would_read(make_inputs: MakeInputs, no_weights: str) -> None:
    inputs, config = make_inputs(), SMALL.model_copy(update={"objective": "pretrain"})
    made = plan(config, no_weights, dataset=inputs.dataset, documents=inputs.documents)
    assert made.num_samples == 1
    with pytest.raises(ConfigError, match="reads documents: give --documents"):
        plan(config, no_weights, dataset=inputs.dataset)


def test_pairs_are_planned_whole(make_inputs: MakeInputs, no_weights: str) -> None:
    inputs = make_inputs()
    made = plan(SMALL.model_copy(update={"objective": "dpo"}), no_weights, dataset=pairs_in(inputs.store))
    assert made.num_samples is not None
    assert made.num_samples > 10
    assert made.micro_batch[0] % 2 == 0


def pairs_in(store: ArtifactStore) -> Artifact:
    def build(output: Path, scratch: Path) -> Built:
        every = [
            Preference(
                id=f"p{n}", messages=(Message(role="user", content=f"Lamp {n}?"),), chosen="8 EUR.", rejected="No."
            )
            for n in range(20)
        ]
        write_jsonl(output / PREFERENCES, every)
        write_jsonl(output / "train.jsonl", [conversation(1)])
        return Built()

    return store.produce("dataset", build, inputs={"pairs": "1"}, config={}, code="1")[0]


def test_a_plan_that_cannot_fit_is_refused_with_what_would(middle: str) -> None:
    made = plan(with_memory(0.8), middle, num_tokens=100_000)
    assert made.fits is False
    with pytest.raises(ConfigError, match=r"needs [\d.]+ GiB a device and lamp has 0.7 GiB to use: set ") as caught:
        made.require_fit()
    assert "\n" not in str(caught.value)
    assert any("micro_batch_tokens=" in remedy for remedy in made.remedies)


def test_every_remedy_holds_what_it_promises(middle: str) -> None:
    config = with_memory(0.8)
    for remedy in plan(config, middle, num_tokens=100_000).remedies[:2]:
        settings = remedy.removeprefix("set ").partition(" (")[0].split(" and ")
        changes = dict(setting.split("=") for setting in settings)
        changed = FinetuneConfig.load({**config.dump(), **changes})
        assert plan(changed, middle, num_tokens=100_000).fits, remedy


def test_remedies_are_joined_when_none_alone_is_enough(middle: str) -> None:
    made = plan(with_memory(0.14, tokens_per_batch=65536), middle, num_tokens=100_000)
    assert len(made.remedies) == 1
    assert "activation_checkpointing=True" in made.remedies[0]


def test_where_nothing_fits_a_smaller_base_is_the_advice(middle: str) -> None:
    with pytest.raises(ConfigError, match="take a smaller base or a device with more memory"):
        plan(with_memory(0.01), middle, num_tokens=1000).require_fit()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either a dataset or a number of tokens"),
        ({"num_tokens": 0}, "--tokens is 0"),
        ({"num_tokens": 10, "device": "sun"}, "'sun' is not in finetune.prices, which names lamp"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(given: dict[str, Any], message: str, no_weights: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(PRICED, no_weights, **given)


def test_a_table_of_several_devices_asks_which(no_weights: str) -> None:
    config = SMALL.model_copy(update={"prices": {"lamp": LAMP, "sun": LAMP}})
    with pytest.raises(ConfigError, match="names lamp, sun: say with --device"):
        plan(config, no_weights, num_tokens=10)
    assert plan(config, no_weights, num_tokens=10, device="sun").device == "sun"


def test_samples_longer_than_the_base_takes_are_refused(no_weights: str) -> None:
    with pytest.raises(ConfigError, match=r"max_length is 512 and base model .* takes 256 tokens at most"):
        plan(FinetuneConfig(), no_weights, num_tokens=10)


def test_a_dataset_without_an_answer_is_refused(make_inputs: MakeInputs, no_weights: str) -> None:
    with pytest.raises(InputError, match="no trainable token"):
        plan(SMALL, no_weights, dataset=make_inputs([]).dataset)


def command(*arguments: str) -> Any:
    from serin_pipelines.cli_finetune import app

    return CliRunner().invoke(app, list(arguments))


def test_the_command_prints_the_plan_as_json(no_weights: str) -> None:
    limit = ("--set", "finetune.max_length=128", "--set", "finetune.tokens_per_batch=512")
    result = command("plan", "--tokens", "1000", "--base-model", no_weights, *limit, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["num_tokens"] == 1000
    assert shown["fits"] is None
    table = command("plan", "--tokens", "1000", "--base-model", no_weights, *limit)
    assert "memory gib" in table.stdout


def test_the_command_refuses_what_cannot_fit(middle: str) -> None:
    small = ("--set", "finetune.prices.lamp.memory_gib=0.1", "--set", "finetune.method=full")
    result = command("plan", "--tokens", "1000", "--base-model", middle, *small, "--device", "lamp", "--json")
    assert isinstance(result.exception, ConfigError)
    assert json.loads(result.stdout)["fits"] is False


def test_without_a_subcommand_the_group_trains_and_asks_for_its_inputs() -> None:
    result = command()
    assert result.exit_code == 2
    assert "--dataset" in result.stderr
    assert "plan" in command("--help").stdout
