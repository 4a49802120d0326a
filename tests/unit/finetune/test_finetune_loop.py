"""The plain training loop, killed and not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lamps import conversation

from serin.core.digests import digest_of_file
from serin.core.errors import InputError, IntegrityError
from serin.core.prompts import Prompt
from serin.finetune.config import PhaseConfig
from serin.finetune.data import encode_conversations, save_samples
from serin.finetune.loop import ADAPTER, MERGED, Job, LoraSpec, _Training, learning_rate, train

# PEFT 0.21 asks transformers 5.23 for an attribute that the latter renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RUN_JOB = (
    "import sys, pathlib; from serin.finetune.loop import Job, train; "
    "train(Job.model_validate_json(pathlib.Path(sys.argv[1]).read_bytes()))"
)

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path, tiny_folder: Path, tokenizer: Any) -> MakeJob:
    def make(folder: str = "job", **changes: Any) -> Job:
        train_file, validation_file = tmp_path / "train.safetensors", tmp_path / "validation.safetensors"
        chats = [conversation(number, passages=1 + number % 3) for number in range(40)]
        save_samples(train_file, encode_conversations(tokenizer, chats[:32], Prompt(), 256).samples)
        save_samples(validation_file, encode_conversations(tokenizer, chats[32:], Prompt(), 256).samples)
        values: dict[str, Any] = {
            "phase": "fine-tuning",
            "model": str(tiny_folder),
            "train": str(train_file),
            "validation": str(validation_file),
            "folder": str(tmp_path / folder),
            "inputs": {"train": digest_of_file(train_file)},
            "optim": PhaseConfig(max_steps=12, tokens_per_batch=600, learning_rate=1e-2),
            "lora": LoraSpec(rank=4, alpha=8),
            "precision": "fp32",
            "threads": 1,
            "checkpoint_interval_s": 60,
            "validation_interval": 4,
        }
        return Job(**{**values, **changes})

    return make


def digest(result: Path) -> str:
    return digest_of_file(result / MERGED / "model.safetensors")


def newest_step(job: Job) -> int:
    found = sorted((Path(job.folder) / "checkpoints").glob("step-*"))
    return int(found[-1].name.removeprefix("step-")) if found else 0


def start_and_kill(job: Job, at_step: int) -> None:
    """Run a job in a process of its own and kill -9 it once it has a checkpoint of a step."""
    path = Path(job.folder).with_suffix(".json")
    eager = job.model_copy(update={"checkpoint_interval_s": 0.0})
    path.write_text(eager.model_dump_json(), encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", RUN_JOB, str(path)])
    deadline = time.monotonic() + 120
    while newest_step(job) < at_step:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_the_same_seed_gives_the_same_weights(make_job: MakeJob) -> None:
    first, second = train(make_job("a")), train(make_job("b"))
    assert digest(first) == digest(second)
    assert digest_of_file(first / ADAPTER / "adapter_config.json") == digest_of_file(
        second / ADAPTER / "adapter_config.json"
    )
    assert digest(train(make_job("c", seed=1))) != digest(first)


def test_training_lowers_the_loss(make_job: MakeJob) -> None:
    records: list[dict[str, Any]] = []
    train(make_job(), report=records.append)
    losses = [record["val_loss"] for record in records if record.get("val_loss") is not None]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 13))


def test_a_killed_job_continues_to_the_very_same_weights(make_job: MakeJob) -> None:
    optim = PhaseConfig(max_steps=150, tokens_per_batch=600, learning_rate=1e-2)
    unbroken = train(make_job("unbroken", optim=optim))
    job = make_job("killed", optim=optim)
    start_and_kill(job, at_step=5)
    assert not job.final.exists()
    stopped_at = newest_step(job)
    records: list[dict[str, Any]] = []
    result = train(job, report=records.append)
    assert records[0] == {"phase": "fine-tuning", "step": stopped_at, "steps": 150, "resumed": True}
    assert digest(result) == digest(unbroken)


def test_a_damaged_checkpoint_is_passed_over(make_job: MakeJob) -> None:
    optim = PhaseConfig(max_steps=150, tokens_per_batch=600, learning_rate=1e-2)
    job = make_job(optim=optim)
    start_and_kill(job, at_step=5)
    newest = sorted((Path(job.folder) / "checkpoints").glob("step-*"))[-1]
    os.truncate(newest / "tensors.safetensors", 1000)
    records: list[dict[str, Any]] = []
    train(job, report=records.append)
    assert records[0]["resumed"]
    assert records[0]["step"] < int(newest.name.removeprefix("step-"))


def test_a_checkpoint_of_other_settings_is_refused(make_job: MakeJob) -> None:
    job = make_job()
    training = _Training(job, _ranks(), lambda record: None)
    training._advance([0, 1])
    training._save_checkpoint()
    other = job.model_copy(update={"seed": 7})
    with pytest.raises(IntegrityError, match="other settings, other data or another base"):
        train(other)
    assert train(job).is_dir()


def test_a_finished_job_is_not_run_again(make_job: MakeJob) -> None:
    job = make_job()
    train(job)
    records: list[dict[str, Any]] = []
    train(job, report=records.append)
    assert records == []


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(make_job: MakeJob) -> None:
    wild = PhaseConfig(max_steps=12, tokens_per_batch=600, learning_rate=1e37, warmup_fraction=0)
    job = make_job(optim=wild, lora=None, checkpoint_interval_s=0)
    with pytest.raises(InputError, match=r"at step 2 of 12 of fine-tuning: lower .* checkpoint of step 1 is kept"):
        train(job)
    assert newest_step(job) == 1
    assert not job.final.exists()


def test_the_adapter_on_the_base_is_the_merged_model(make_job: MakeJob, tiny_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = train(make_job())
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, result / ADAPTER)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(result / MERGED)(ids).logits
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)
    assert (before - merged).abs().max() > 1e-2


def test_full_training_writes_no_adapter(make_job: MakeJob) -> None:
    result = train(make_job(lora=None))
    assert sorted(path.name for path in result.iterdir()) == [MERGED]


def test_neighbours_and_padding_do_not_change_a_sample_s_loss(make_job: MakeJob) -> None:
    training = _Training(make_job(), _ranks(), lambda record: None)
    together, count = training._loss(training.samples, [0, 1, 2])
    apart = [training._loss(training.samples, [index]) for index in (0, 1, 2)]
    torch.testing.assert_close(together, sum(loss for loss, _ in apart))
    assert count == sum(tokens for _, tokens in apart)


def test_two_ranks_learn_what_one_learns(make_job: MakeJob, tmp_path: Path) -> None:
    alone = train(make_job("alone"))
    job = make_job("shared")
    path = tmp_path / "shared.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    script = (
        "import sys, pathlib; from torch import distributed; from serin.finetune.loop import Job, train; "
        "from serin.finetune.ray_train import _DistributedRanks; rank = int(sys.argv[2]); "
        f"distributed.init_process_group('gloo', init_method='file://{tmp_path}/meet', rank=rank, world_size=2); "
        "train(Job.model_validate_json(pathlib.Path(sys.argv[1]).read_bytes()), _DistributedRanks(rank, 2)); "
        "distributed.barrier(); distributed.destroy_process_group()"
    )
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(rank)], env=environment) for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    from safetensors.torch import load_file

    one, two = (load_file(result / ADAPTER / "adapter_model.safetensors") for result in (alone, job.final))
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-2, atol=1e-3)


def test_bf16_is_repeatable_too(make_job: MakeJob) -> None:
    assert digest(train(make_job("a", precision="bf16"))) == digest(train(make_job("b", precision="bf16")))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_and_ends_where_it_should(schedule: str) -> None:
    optim = PhaseConfig(learning_rate=1.0, schedule=schedule, warmup_fraction=0.1, final_fraction=0.2)
    rates = [learning_rate(step, 100, optim) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)


def _ranks() -> Any:
    from serin.finetune.loop import Ranks

    return Ranks()
