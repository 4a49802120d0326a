"""The whole stage, with the plain loop in place of Ray."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from lamps import SMALL, Inputs, MakeInputs, conversation, start_stage

from serin.core.artifacts import Built
from serin.core.config import Section
from serin.core.digests import code_version
from serin.core.errors import ConfigError, InputError, UnavailableError
from serin.core.records import Conversation, Message, write_jsonl
from serin.finetune.base import TINY
from serin.finetune.config import FinetuneConfig
from serin.finetune.preferences import PREFERENCES, Preference
from serin.finetune.train import Finetuned, finetune

# PEFT 0.21 asks transformers 5.23 for an attribute that the latter renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def run(inputs: Inputs, config: FinetuneConfig = SMALL, base: str = TINY, tracking_uri: str = "") -> Finetuned:
    return finetune(config, base, inputs.prompt, inputs.dataset, inputs.documents, inputs.context(tracking_uri))


def test_the_stage_makes_a_base_and_a_model_that_answers(inputs: Inputs) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = run(inputs)
    assert set(made.base.manifest.files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "training.json",
    }
    assert {"card.md", "training.json", "report.html", "adapter/adapter_model.safetensors"} < set(
        made.model.manifest.files
    )
    assert made.model.manifest.inputs["base"] == made.base.digest
    assert made.model.metadata["val_loss"] < made.model.metadata["val_loss_before"]
    assert made.base.metadata["val_loss"] < made.base.metadata["val_loss_before"]
    tokenizer = AutoTokenizer.from_pretrained(made.model.path / "merged")
    model = AutoModelForCausalLM.from_pretrained(made.model.path / "merged")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does lamp 3 cost?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert model.generate(prompt, max_new_tokens=4).shape[1] > prompt.shape[1]


def test_no_path_of_this_machine_is_in_the_artefacts(inputs: Inputs, tmp_path: Path) -> None:
    made = run(inputs)
    for artifact in (made.base, made.model):
        for name in artifact.manifest.files:
            assert str(tmp_path).encode() not in (artifact.path / name).read_bytes(), name


def test_the_same_seed_gives_the_same_digests_and_another_does_not(make_inputs: MakeInputs) -> None:
    first, second = run(make_inputs(folder="a")), run(make_inputs(folder="b"))
    assert first.base.digest == second.base.digest
    assert first.model.digest == second.model.digest
    other = run(make_inputs(folder="c"), SMALL.model_copy(update={"seed": 1}))
    assert other.model.digest != first.model.digest


def test_finished_work_is_reused_and_the_base_outlives_other_settings(inputs: Inputs) -> None:
    first = run(inputs)
    context = inputs.context(lineage_id="lineage-2")
    again = finetune(SMALL, TINY, inputs.prompt, inputs.dataset, inputs.documents, context)
    assert (again.base.uri, again.model.uri) == (first.base.uri, first.model.uri)
    assert [event["kind"] for event in inputs.report.named("reused")] == ["base", "model"]
    other = run(inputs, SMALL.model_copy(update={"learning_rate": 2e-3}))
    assert other.base.digest == first.base.digest
    assert other.model.digest != first.model.digest
    how_only = run(inputs, SMALL.model_copy(update={"checkpoint_interval_s": 1.0}))
    assert how_only.model.manifest.key == first.model.manifest.key


def test_a_base_folder_is_copied_and_tuned(inputs: Inputs, tiny_folder: Path) -> None:
    made = run(inputs, base=str(tiny_folder))
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert (made.base.path / "model.safetensors").read_bytes() == weights
    assert (made.model.path / "merged" / "model.safetensors").read_bytes() != weights
    assert (made.model.path / "merged" / "chat_template.jinja").is_file()


def test_full_training_makes_a_model_without_an_adapter(inputs: Inputs) -> None:
    made = run(inputs, SMALL.model_copy(update={"method": "full"}))
    assert not (made.model.path / "adapter").exists()


def test_progress_comes_every_two_seconds_and_rises(inputs: Inputs) -> None:
    run(inputs)
    times = [when for when, event, _ in inputs.report.events if event == "progress"]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 3.0  # two, and a busy machine
    fractions = [event["fraction"] for event in inputs.report.named("progress")]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.9


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow 3.17 with SQLAlchemy 2.1
def test_mlflow_shows_both_phases(inputs: Inputs, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    made = run(inputs, tracking_uri=uri)
    client = MlflowClient(uri)
    shown = client.get_run(made.model.manifest.mlflow_run_id).data
    assert {"pretrain.val_loss", "finetune.loss", "finetune.val_loss", "finetune.lr"} <= set(shown.metrics)
    assert shown.params["dataset_digest"] == inputs.dataset.digest
    history = client.get_metric_history(made.model.manifest.mlflow_run_id, "finetune.val_loss")
    assert [point.step for point in history] == [0, 3, 6]


def test_the_report_and_the_card_tell_the_course(inputs: Inputs) -> None:
    made = run(inputs)
    page = (made.model.path / "report.html").read_text()
    assert all(f">{phase}</h2>" in page for phase in ("Pretraining", "Fine-tuning"))
    assert page.count("<svg") >= 2
    assert "<script" not in page
    card = (made.model.path / "card.md").read_text()
    assert made.base.digest in card
    assert inputs.dataset.digest in card
    assert f"| validation_loss | {made.model.metadata['val_loss']:.4g} |" in card
    assert f"| validation_loss_of_the_base | {made.model.metadata['val_loss_before']:.4g} |" in card
    curve = json.loads((made.model.path / "training.json").read_text())["curve"]
    assert [step for step, _ in curve["loss"]] == [1, 2, 3, 4, 5, 6]


def test_a_dataset_without_an_answer_is_refused_before_any_training(make_inputs: MakeInputs) -> None:
    blank = Conversation(id="b", messages=(Message(role="user", content="?"), Message(role="assistant", content=" ")))
    for train in ([], [blank]):
        inputs = make_inputs(train, folder=f"store-{len(train)}")
        with pytest.raises(InputError, match="no trainable token"):
            run(inputs)
        assert not inputs.store.storage.keys("base")


def test_conversations_that_are_all_too_long_are_refused(make_inputs: MakeInputs, tiny_folder: Path) -> None:
    huge = conversation(1).model_copy(
        update={"messages": (Message(role="user", content="?"), Message(role="assistant", content="lamp " * 500))}
    )
    inputs = make_inputs([huge])
    with pytest.raises(InputError, match=r"longer than max_length=128 tokens: raise finetune.max_length"):
        run(inputs, base=str(tiny_folder))
    assert not inputs.store.storage.keys("model")


@pytest.mark.parametrize(
    "values",
    [{"lora_rank": 0}, {"rank": 8}, {"tiny": {"hidden_size": 31}}, {"max_length": 4096}, {"schedule": "wild"}],
)
def test_settings_that_cannot_be_used_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="FinetuneConfig cannot be used"):
        FinetuneConfig.load(values)


def test_settings_survive_kfp_s_floats() -> None:
    floats = json.loads(json.dumps(SMALL.dump()), parse_int=float)
    assert FinetuneConfig.load(floats) == SMALL
    assert isinstance(SMALL, Section)


def test_a_stage_killed_in_both_phases_ends_as_if_it_had_not_been(make_inputs: MakeInputs) -> None:
    tiny = SMALL.tiny.model_copy(update={"max_steps": 150})
    config = SMALL.model_copy(update={"max_steps": 150, "tiny": tiny})
    unbroken = run(make_inputs(folder="unbroken"), config)
    inputs = make_inputs(folder="killed")
    for kind in ("base", "model"):
        start_and_kill(inputs, config.model_copy(update={"checkpoint_interval_s": 0.0}), kind)
        assert not inputs.store.storage.keys(kind)
    made = run(inputs, config)
    assert made.base.digest == unbroken.base.digest
    assert made.model.digest == unbroken.model.digest
    for artifact in (made.base, made.model):
        curve = json.loads((artifact.path / "training.json").read_text())["curve"]
        assert curve["resumed"] == 1
        assert len(curve["loss"]) == 150


def start_and_kill(inputs: Inputs, config: FinetuneConfig, kind: str) -> None:
    """Run the stage in a process of its own and kill -9 it when an artefact's training has a few checkpoints."""
    process = start_stage(inputs, config)
    deadline = time.monotonic() + 120
    while not list(inputs.folder.glob(f".work/{kind}-*/scratch/checkpoints/step-*[3-9]")):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:kfp")
def test_the_component_hands_out_both_artefacts(inputs: Inputs, tmp_path: Path) -> None:
    from kfp import dsl

    from serin.finetune.component import finetune as component

    given = {
        name: dsl.Dataset(uri=str(tmp_path / name), metadata={"uri": artifact.uri})
        for name, artifact in (("dataset", inputs.dataset), ("documents", inputs.documents))
    }
    outputs = {
        "base": dsl.Model(uri=str(tmp_path / "out" / "base")),
        "model": dsl.Model(uri=str(tmp_path / "out" / "model")),
        "metrics": dsl.Metrics(uri=str(tmp_path / "out" / "metrics")),
        "report": dsl.HTML(uri=str(tmp_path / "out" / "report")),
    }
    component.python_func(
        base_model=TINY,
        prompt=inputs.prompt.dump(),
        store_uri=inputs.store.uri,
        tracking_uri="",
        endpoint="assistant",
        lineage_id="lineage-1",
        config=SMALL.dump(),
        cluster={},
        code_version=code_version("finetune"),
        **given,
        **outputs,
    )
    assert inputs.store.open(outputs["model"].metadata["uri"]).digest == outputs["model"].metadata["digest"]
    assert outputs["metrics"].metadata["val_loss"] > 0
    report = (tmp_path / "out" / "report").read_text()
    assert report.startswith("<!DOCTYPE html>")
    [curve] = re.findall(
        r'id="fine-tuning".*?Loss per learned token.*?<polyline class="curve" points="([^"]*)"', report
    )
    assert SMALL.max_steps is not None
    assert len(set(curve.split())) == SMALL.max_steps, "the loss of every step is drawn"


def with_preferences(inputs: Inputs) -> Inputs:
    """The inputs with a dataset that also holds preferences."""

    def build(output: Path, scratch: Path) -> Built:
        shutil.copytree(inputs.dataset.path, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        questions = [Message(role="user", content=f"What does lamp {number} cost?") for number in range(40)]
        pairs = [
            Preference(id=f"p{number}", messages=(question,), chosen=f"{number + 7} EUR.", rejected="No idea.")
            for number, question in enumerate(questions)
        ]
        write_jsonl(output / PREFERENCES, pairs)
        return Built()

    made, _ = inputs.store.produce("dataset", build, inputs={"from": inputs.dataset.digest}, config={}, code="1")
    return dataclasses.replace(inputs, dataset=made)


def test_dpo_learns_from_the_dataset_s_preferences(inputs: Inputs, tiny_folder: Path) -> None:
    config = SMALL.model_copy(update={"objective": "dpo", "max_steps": 10})
    made = run(with_preferences(inputs), config, str(tiny_folder))
    assert made.model.metadata["objective"] == "dpo"
    assert made.model.metadata["val_loss_before"] == pytest.approx(math.log(2), abs=1e-3)
    assert made.model.metadata["val_loss"] < math.log(2)
    assert 30 <= made.model.metadata["samples"] < 40


def test_dpo_without_preferences_is_refused_before_any_training(inputs: Inputs, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"dpo needs preferences\.jsonl"):
        run(inputs, SMALL.model_copy(update={"objective": "dpo"}), str(tiny_folder))
    assert not inputs.store.storage.keys("base")


def test_continued_pretraining_reads_the_documents(inputs: Inputs, tiny_folder: Path) -> None:
    made = run(inputs, SMALL.model_copy(update={"objective": "pretrain"}), str(tiny_folder))
    assert made.model.manifest.inputs["documents"] == inputs.documents.digest
    assert made.model.metadata["samples"] == 1
    curve = json.loads((made.model.path / "training.json").read_text())["curve"]
    assert curve["loss"][-1][1] < curve["loss"][0][1]


def test_the_licence_of_the_base_is_on_the_card(inputs: Inputs, tiny_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    made = run(inputs, base=str(base))
    assert "| base_licence | cc-by-4.0 |" in (made.model.path / "card.md").read_text()


def test_samples_longer_than_the_base_takes_are_refused_before_any_training(inputs: Inputs, tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="takes 256 tokens at most"):
        run(inputs, SMALL.model_copy(update={"max_length": 300}), str(tiny_folder))
    assert not inputs.store.storage.keys("base")


def test_four_bits_without_a_gpu_are_refused_before_any_training(inputs: Inputs, tiny_folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnavailableError, match="qlora needs a GPU"):
        run(inputs, SMALL.model_copy(update={"method": "qlora"}), str(tiny_folder))
    assert not inputs.store.storage.keys("base")
