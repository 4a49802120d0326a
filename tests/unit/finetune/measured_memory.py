"""Train models of random weights with the plain loop and print the peak memory of each, as the process sees it.

Run in a process of its own, with MALLOC_MMAP_THRESHOLD_ set: otherwise glibc keeps what was freed, and the peak is its
habit rather than the training's need.
"""

import gc
import json
import random
import sys
import threading
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from serin.finetune.config import PhaseConfig
from serin.finetune.data import Sample, save_samples
from serin.finetune.job import Job, LoraSpec
from serin.finetune.loop import train
from serin.finetune.memory import StepShape

SIZES = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
SMALL = {**SIZES, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}


class Peak:
    """The most resident memory while it is open, sampled every millisecond."""

    def __enter__(self) -> "Peak":
        self.process, self.is_open = psutil.Process(), True
        self.before = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.is_open:
            self.most = max(self.most, self.process.memory_info().rss)
            time.sleep(0.001)

    def __exit__(self, *error: object) -> None:
        self.is_open = False
        self.thread.join()

    @property
    def grown(self) -> int:
        """Bytes above what there was at the start."""
        return self.most - self.before


def train_random(folder: Path, sizes: dict[str, Any], shape: StepShape) -> None:
    """Two steps of the shape on a new model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / "base")
    gc.collect()
    generator = random.Random(0)
    rows = [
        Sample([generator.randrange(sizes["vocab_size"]) for _ in range(shape.tokens)], [True] * shape.tokens)
        for _ in range(shape.rows)
    ]
    save_samples(folder / "train", rows)
    save_samples(folder / "validation", [])
    lora = None if shape.method == "full" else LoraSpec(rank=shape.lora_rank, alpha=shape.lora_rank)
    job = Job(
        phase="fine-tuning",
        model=str(folder / "base"),
        train=str(folder / "train"),
        validation=str(folder / "validation"),
        folder=str(folder / "job"),
        inputs={},
        optim=PhaseConfig(max_steps=2, tokens_per_batch=max(16, shape.rows * shape.tokens), learning_rate=1e-4),
        lora=lora,
        precision="bf16" if shape.precision == "bf16" else "fp32",
        threads=1,
        device="cpu",
        activation_checkpointing=shape.activation_checkpointing,
        checkpoint_interval_s=1e6,
    )
    train(job)


def main(shapes: list[dict[str, Any]]) -> None:
    """Print the bytes of each shape, one a line."""
    warnings.simplefilter("ignore")
    for sizes, values in [(SMALL, shapes[0]), *((SIZES, shape) for shape in shapes)]:
        gc.collect()
        with TemporaryDirectory() as folder, Peak() as peak:
            train_random(Path(folder), sizes, StepShape(**values))
        if sizes is SIZES:
            print(peak.grown, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
