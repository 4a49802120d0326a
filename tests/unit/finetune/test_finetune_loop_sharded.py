"""The plain loop shared by two processes: whole copies of the model, and shards of it."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import LONG, PEFT_WARNING, JobMaker, newest_step, recorded, run_ranks, start_ranks, weights

from serin.finetune.loop import Job, train

pytestmark = [pytest.mark.filterwarnings(PEFT_WARNING), pytest.mark.slow]


@pytest.fixture
def make_job(tmp_path: Path, tiny_folder: Path, tokenizer: Any) -> JobMaker:
    return JobMaker(tmp_path, tiny_folder, tokenizer)


def assert_alike(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-2, atol=1e-3)


def test_two_processes_learn_what_one_learns_with_copies_and_with_shards(make_job: JobMaker) -> None:
    stopping = {"early_stopping_patience": 100}  # the best weights are gathered too
    changes = {"strategy": "fsdp2", "micro_batch_tokens": 200, "activation_checkpointing": True}
    copied, sharded = run_ranks(make_job("shared", micro_batch_tokens=200), make_job("sharded", **stopping, **changes))
    assert_alike(weights(train(make_job("alone"))), weights(copied))
    alone = train(make_job("alone-too", **stopping))
    assert_alike(weights(alone), weights(sharded))
    merged = "merged/model.safetensors"
    assert_alike(weights(alone, merged), weights(sharded, merged))


def test_shards_killed_in_the_middle_continue_on_two_ranks_and_on_one(make_job: JobMaker) -> None:
    """The batch's number is the data's position, so that fewer workers go on where more left off."""
    changes = {
        "lora": None,
        "strategy": "fsdp2",
        "optim": LONG.model_copy(update={"max_steps": 40, "learning_rate": 1e-3}),
    }
    merged = "merged/model.safetensors"
    unbroken = weights(train(make_job("unbroken", **changes)), merged)
    job = make_job("killed", **changes)
    kill_ranks_at(job, step=5)
    copy = job.model_copy(update={"folder": job.folder + "-copy"})
    shutil.copytree(job.folder, copy.folder)
    [continued] = run_ranks(job, try_number=2)
    assert_alike(unbroken, weights(continued, merged))
    result, records = recorded(copy)
    assert records[0]["resumed"]
    assert_alike(unbroken, weights(result, merged))


def kill_ranks_at(job: Job, step: int) -> None:
    processes = start_ranks(job.model_copy(update={"checkpoint_interval_s": 0.0}))
    while newest_step(job) < step:
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.02)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not job.final.exists()
