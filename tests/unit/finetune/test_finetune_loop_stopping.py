"""Early stopping: the best weights are kept, and a kill changes nothing about it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import PEFT_WARNING, JobMaker, digest, recorded, start_and_kill, weights

from serin.finetune.config import PhaseConfig
from serin.finetune.data import Sample, save_samples
from serin.finetune.loop import PROGRESS, Job, train
from serin.finetune.state import Course

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

EAGER = PhaseConfig(max_steps=150, tokens_per_batch=600, learning_rate=3e-2, schedule="constant")


@pytest.fixture
def make_job(tmp_path: Path, tiny_folder: Path, tokenizer: Any) -> JobMaker:
    return JobMaker(tmp_path, tiny_folder, tokenizer)


@pytest.fixture
def contrary(tmp_path: Path, tokenizer: Any) -> str:
    """Validation samples that get worse the better the training samples are known, after a while."""
    path = tmp_path / "contrary.safetensors"
    ids = [10 + (7 * number) % (len(tokenizer) - 10) for number in range(60)]
    save_samples(path, [Sample(ids, [True] * 60)])
    return str(path)


def stopping_job(make_job: JobMaker, contrary: str, folder: str) -> Job:
    changes: dict[str, Any] = {"optim": EAGER, "early_stopping_patience": 3, "validation": contrary}
    return make_job(folder, validation_interval=2, **changes)


def test_training_stops_when_validation_gains_no_more_and_keeps_the_best(make_job: JobMaker, contrary: str) -> None:
    result, records = recorded(stopping_job(make_job, contrary, "stopped"))
    losses = {record["step"]: record["val_loss"] for record in records if record.get("val_loss") is not None}
    last = records[-1]
    best = min(losses, key=lambda step: losses[step])
    assert last["stopped_early"]
    assert (last["best_step"], last["best_val_loss"]) == (best, losses[best])
    assert last["step"] == best + 3 * 2 < EAGER.max_steps
    assert_gives(result, contrary, losses[best])


def assert_gives(result: Path, samples: str, loss: float) -> None:
    from transformers import AutoModelForCausalLM

    from serin.finetune.data import SampleFile

    model = AutoModelForCausalLM.from_pretrained(result / "merged")
    ids, labels = SampleFile(Path(samples)).batch([0], 0)
    with torch.no_grad():
        found = model(input_ids=ids, labels=labels, use_cache=False).loss
    assert float(found) == pytest.approx(loss, rel=1e-4)


def test_a_job_that_was_killed_stops_at_the_same_step_with_the_same_weights(make_job: JobMaker, contrary: str) -> None:
    unbroken, records = recorded(stopping_job(make_job, contrary, "unbroken"))
    job = stopping_job(make_job, contrary, "killed")
    start_and_kill(job, at_step=records[-1]["best_step"] + 2)
    result, continued = recorded(job)
    assert continued[0]["resumed"]
    assert continued[0]["step"] > records[-1]["best_step"], "the best weights come from the checkpoint"
    assert continued[-1] == records[-1]
    assert digest(result) == digest(unbroken)


def test_without_patience_the_last_weights_are_kept(make_job: JobMaker, contrary: str) -> None:
    short = EAGER.model_copy(update={"max_steps": 12})
    plain = make_job("plain", optim=short, validation=contrary, validation_interval=2)
    patient = plain.model_copy(update={"folder": plain.folder + "-patient", "early_stopping_patience": 100})
    train(plain)
    assert "best_step" not in (Path(plain.folder) / PROGRESS).read_text()
    result, records = recorded(patient)
    assert not records[-1]["stopped_early"]
    same = all(torch.equal(tensor, weights(result)[name]) for name, tensor in weights(plain.final).items())
    assert same == (records[-1]["best_step"] == 12)


def test_a_course_remembers_its_best() -> None:
    course = Course()
    assert [course.note(loss, step) for step, loss in enumerate([3.0, 2.0, 2.0, 2.5, 1.0])] == [True, True] + [
        False
    ] * 2 + [True]
    assert json.loads(json.dumps(course.values())) == {"best_loss": 1.0, "best_step": 4, "num_without_gain": 0}
