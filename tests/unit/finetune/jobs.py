"""Jobs for the plain loop, run here, in processes of their own, or by several ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamps import conversation

from serin.core.digests import digest_of_file
from serin.core.prompts import Prompt
from serin.finetune.config import PhaseConfig
from serin.finetune.data import encode_conversations, save_samples
from serin.finetune.loop import ADAPTER, MERGED, Job, LoraSpec, train

# PEFT 0.21 asks transformers 5.23 for an attribute that the latter renamed.
PEFT_WARNING = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
SHORT = PhaseConfig(max_steps=12, tokens_per_batch=600, learning_rate=1e-2)
LONG = PhaseConfig(max_steps=150, tokens_per_batch=600, learning_rate=1e-2)

RUN_JOB = (
    "import sys, pathlib; from serin.finetune.loop import Job, train; "
    "train(Job.model_validate_json(pathlib.Path(sys.argv[1]).read_bytes()))"
)
RUN_RANK = (
    "import sys, pathlib; from torch import distributed; from serin.finetune.loop import Job, train; "
    "from serin.finetune.ranks import DistributedRanks; rank, size = int(sys.argv[2]), int(sys.argv[3]); "
    "distributed.init_process_group('gloo', init_method='file://' + sys.argv[4], rank=rank, world_size=size); "
    "ranks = DistributedRanks(rank, size); paths = map(pathlib.Path, [sys.argv[1], *sys.argv[5:]]); "
    "[train(Job.model_validate_json(path.read_bytes()), ranks) for path in paths]; "
    "distributed.barrier(); distributed.destroy_process_group()"
)


@dataclass(frozen=True)
class JobMaker:
    """Makes jobs over 32 short conversations about lamps."""

    tmp_path: Path
    model: Path
    tokenizer: Any

    def __call__(self, folder: str = "job", **changes: Any) -> Job:
        train_file, validation_file = self.tmp_path / "train.safetensors", self.tmp_path / "validation.safetensors"
        chats = [conversation(number, passages=1 + number % 3) for number in range(40)]
        save_samples(train_file, encode_conversations(self.tokenizer, chats[:32], Prompt(), 256).samples)
        save_samples(validation_file, encode_conversations(self.tokenizer, chats[32:], Prompt(), 256).samples)
        values: dict[str, Any] = {
            "phase": "fine-tuning",
            "model": str(self.model),
            "train": str(train_file),
            "validation": str(validation_file),
            "folder": str(self.tmp_path / folder),
            "inputs": {"train": digest_of_file(train_file)},
            "optim": SHORT,
            "lora": LoraSpec(rank=4, alpha=8),
            "precision": "fp32",
            "threads": 1,
            "checkpoint_interval_s": 60,
            "validation_interval": 4,
        }
        return Job(**{**values, **changes})


def recorded(job: Job) -> tuple[Path, list[dict[str, Any]]]:
    """Run a job; its result and its lines of progress."""
    records: list[dict[str, Any]] = []
    return train(job, report=records.append), records


def digest(result: Path) -> str:
    """Digest of the merged model."""
    return digest_of_file(result / MERGED / "model.safetensors")


def weights(result: Path, part: str = f"{ADAPTER}/adapter_model.safetensors") -> dict[str, Any]:
    """The tensors of a result."""
    from safetensors.torch import load_file

    return load_file(result / part)


def newest_step(job: Job) -> int:
    """Step of the newest checkpoint."""
    found = sorted((Path(job.folder) / "checkpoints").glob("step-*"))
    return int(found[-1].name.removeprefix("step-")) if found else 0


def start_and_kill(job: Job, at_step: int) -> None:
    """Run a job in a process of its own and kill -9 it once it has a checkpoint of a step."""
    process = start(job.model_copy(update={"checkpoint_interval_s": 0.0}))
    deadline = time.monotonic() + 120
    while newest_step(job) < at_step:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def start(job: Job, *arguments: str, script: str = RUN_JOB) -> subprocess.Popen[bytes]:
    """Run a job in a process of its own."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen([sys.executable, "-c", script, written(job), *arguments], env=environment)


def written(job: Job) -> str:
    """The file that hands a job to another process."""
    path = Path(job.folder).with_suffix(".json")
    path.write_text(job.model_dump_json(), encoding="utf-8")
    return str(path)


def start_ranks(job: Job, *more: Job, size: int = 2, try_number: int = 1) -> Sequence[subprocess.Popen[bytes]]:
    """Run jobs, one after another, with several ranks, a process each."""
    meeting = Path(job.folder).with_suffix(f".meeting-{try_number}")
    others = [written(other) for other in more]
    return [start(job, str(rank), str(size), str(meeting), *others, script=RUN_RANK) for rank in range(size)]


def run_ranks(job: Job, *more: Job, size: int = 2, try_number: int = 1) -> list[Path]:
    """Run jobs with several ranks to their end."""
    processes = start_ranks(job, *more, size=size, try_number=try_number)
    assert [process.wait(timeout=200) for process in processes] == [0] * size
    return [each.final for each in (job, *more)]
