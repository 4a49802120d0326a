"""The plain training loop, killed and not."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import LONG, PEFT_WARNING, JobMaker, digest, newest_step, recorded, start_and_kill

from serin.core.digests import digest_of, digest_of_file
from serin.core.errors import InputError
from serin.finetune.config import PhaseConfig
from serin.finetune.data import SampleFile, batches_from
from serin.finetune.loop import ADAPTER, MERGED, PROGRESS, Job, _Training, learning_rate, train
from serin.finetune.ranks import Ranks

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)


@pytest.fixture
def make_job(tmp_path: Path, tiny_folder: Path, tokenizer: Any) -> JobMaker:
    return JobMaker(tmp_path, tiny_folder, tokenizer)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tokenizer: Any) -> Job:
    """A job that was killed after its fifth step."""
    job = JobMaker(tmp_path_factory.mktemp("stopped"), tiny_folder, tokenizer)("killed", optim=LONG)
    start_and_kill(job, at_step=5)
    return job


@pytest.fixture
def killed(stopped: Job, tmp_path: Path) -> Job:
    """A copy of it, to go on with."""
    shutil.copytree(stopped.folder, tmp_path / "killed")
    return stopped.model_copy(update={"folder": str(tmp_path / "killed")})


def lines_of(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(job.folder) / PROGRESS).read_text().splitlines()]


def test_the_same_seed_gives_the_same_weights(make_job: JobMaker) -> None:
    first, second = train(make_job("a")), train(make_job("b"))
    assert digest(first) == digest(second)
    assert digest_of_file(first / ADAPTER / "adapter_config.json") == digest_of_file(
        second / ADAPTER / "adapter_config.json"
    )
    assert digest(train(make_job("c", seed=1))) != digest(first)


def test_training_lowers_the_loss(make_job: JobMaker) -> None:
    records: list[dict[str, Any]] = []
    train(make_job(), report=records.append)
    losses = [record["val_loss"] for record in records if record.get("val_loss") is not None]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 13))


def test_a_killed_job_continues_to_the_very_same_weights(make_job: JobMaker, killed: Job) -> None:
    unbroken = train(make_job("unbroken", optim=LONG))
    assert not killed.final.exists()
    stopped_at = newest_step(killed)
    result, records = recorded(killed)
    assert records[0] == {"phase": "fine-tuning", "step": stopped_at, "steps": 150, "resumed": True}
    assert digest(result) == digest(unbroken)


def test_no_sample_is_seen_twice_or_skipped_over_a_kill(killed: Job) -> None:
    train(killed)
    lines = [line for line in lines_of(killed) if "batch" in line]
    by_step: dict[int, set[str]] = {}
    for line in lines:
        by_step.setdefault(line["step"], set()).add((line["batch"], line["loss"]))
    assert all(len(seen) == 1 for seen in by_step.values()), "a step that was done again saw other samples"
    samples = SampleFile(Path(killed.train))
    planned = batches_from(samples.lengths, LONG.tokens_per_batch, killed.seed, 0)
    epoch = [next(planned) for _ in range(150)]
    assert [[digest for digest, _ in seen] for _, seen in sorted(by_step.items())] == [
        [digest_of(batch)[:12]] for batch in epoch
    ]
    one = [
        index for batch in epoch[: next(n for n in range(1, 150) if covers(epoch[:n], len(samples)))] for index in batch
    ]
    assert sorted(one) == list(range(len(samples)))


def test_a_damaged_checkpoint_is_passed_over(killed: Job) -> None:
    newest = sorted((Path(killed.folder) / "checkpoints").glob("step-*"))[-1]
    os.truncate(newest / "tensors.safetensors", 1000)
    records: list[dict[str, Any]] = []
    train(killed, report=records.append)
    assert records[0]["resumed"]
    assert records[0]["step"] < int(newest.name.removeprefix("step-"))


def test_a_finished_job_is_not_run_again(make_job: JobMaker) -> None:
    job = make_job()
    train(job)
    assert recorded(job)[1] == []


def test_a_loss_that_is_no_number_names_the_batch_and_keeps_the_last_good_checkpoint(make_job: JobMaker) -> None:
    job = make_job(checkpoint_interval_s=0)
    training = _Training(job, Ranks(), lambda record: None)
    for batch in ([0, 1], [2, 3], [4, 5]):
        training._advance(batch)
    with torch.no_grad():  # what a step that is far too large does
        next(iter(training.trainee.weights.values())).mul_(float("inf"))
    with pytest.raises(
        InputError,
        match=r"nan at step 4 of 12 of fine-tuning, in batch 4 \(samples 6, 7\): "
        r"lower its learning_rate \(0.01\); the checkpoint of step 2 is kept\.",
    ):
        training._advance([6, 7])
    assert newest_step(job) == 2, "the weights of step 3 gave the loss that is no number: they are not kept"
    assert not job.final.exists()
    assert recorded(job)[1][0]["step"] == 2, "training goes on from there"


def test_a_loss_that_is_no_number_at_once_says_that_nothing_was_written(make_job: JobMaker) -> None:
    wild = PhaseConfig(max_steps=12, tokens_per_batch=600, learning_rate=1e37, warmup_fraction=0)
    with pytest.raises(InputError, match=r"nan at step 2 of 12 .* in batch 2 \(samples .* no checkpoint was written"):
        train(make_job(optim=wild, lora=None, checkpoint_interval_s=0))


def test_the_sample_that_gives_no_number_is_named(make_job: JobMaker, tiny_folder: Path, tokenizer: Any) -> None:
    job = make_job()
    training = _Training(job, Ranks(), lambda record: None)
    embeddings = training.trainee.model.get_input_embeddings().weight
    only_in_7 = set(training.samples.batch([7], 0)[0].flatten().tolist())
    only_in_7 -= set(training.samples.batch([2, 3, 5], 0)[0].flatten().tolist())
    with torch.no_grad():
        embeddings[only_in_7.pop()] = float("nan")
    training.trainee.model.lm_head.weight = torch.nn.Parameter(
        torch.nan_to_num(embeddings.detach()), requires_grad=False
    )
    with pytest.raises(InputError, match=r"in batch 1 \(samples 7\)"):
        training._advance([2, 3, 7, 5])


def test_the_adapter_on_the_base_is_the_merged_model(make_job: JobMaker, tiny_folder: Path) -> None:
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


def test_full_training_writes_no_adapter(make_job: JobMaker) -> None:
    result = train(make_job(lora=None))
    assert sorted(path.name for path in result.iterdir()) == [MERGED]


def test_bf16_is_repeatable_too(make_job: JobMaker) -> None:
    assert digest(train(make_job("a", precision="bf16"))) == digest(train(make_job("b", precision="bf16")))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_and_ends_where_it_should(schedule: str) -> None:
    optim = PhaseConfig(learning_rate=1.0, schedule=schedule, warmup_fraction=0.1, final_fraction=0.2)
    rates = [learning_rate(step, 100, optim) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)


def covers(batches: list[list[int]], size: int) -> bool:
    return len({index for batch in batches for index in batch}) == size
