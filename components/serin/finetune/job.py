"""One phase of training as plain values and paths, and what decides its result."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from serin.core.config import Section
from serin.core.digests import digest_of, digest_of_file
from serin.finetune.config import Attention, PhaseConfig, Precision
from serin.finetune.objectives import CrossEntropy, ObjectiveSpec

FINAL, MERGED, ADAPTER, PROGRESS = "final", "merged", "adapter", "progress.jsonl"
LIBRARIES = ("torch", "transformers", "peft")
MODULES = (
    "adapters", "checkpoints", "data", "loop", "model", "narrowing", "objectives", "quantized", "ranks", "schedule",
    "state",
)  # fmt: skip
"""Modules of this package that decide what a job becomes."""


class LoraSpec(Section):
    """Low-rank adapters on every linear layer."""

    rank: int
    """Rank of the adapters."""
    alpha: int
    """Their output is scaled by alpha / rank."""
    quantized: bool = False
    """Hold the base in 4 bits while training (QLoRA); the result is merged with the base as it was."""


class Job(Section):
    """One phase of training, whole."""

    phase: Literal["pretraining", "fine-tuning"]
    """For people."""
    model: str
    """Folder of the model that it starts from."""
    base_name: str = ""
    """What the adapter's config calls its base."""
    train: str
    """Samples, as ``save_samples`` or ``save_pairs`` writes them."""
    validation: str
    """Samples that are never trained on; may hold none."""
    folder: str
    """Where checkpoints, progress and the result go; survives a kill."""
    checkpoint_uri: str = ""
    """Storage that checkpoints are copied to, and fetched from when ``folder`` has no newer one; empty: none."""
    inputs: dict[str, str]
    """Digests of the model and the samples."""
    objective: ObjectiveSpec = ObjectiveSpec()
    """What is minimised."""
    optim: PhaseConfig
    """Training settings."""
    lora: LoraSpec | None = None
    """Adapters; None trains all weights."""
    precision: Precision = "bf16"
    """Arithmetic of the forward pass."""
    seed: int = 0
    """Decides the adapters' initial weights and the order of the samples."""
    threads: int = 2
    """CPU threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is; auto is a GPU when there is one."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """Every worker holds the whole model, or a part of it (``fully_shard``)."""
    micro_batch_tokens: int | None = Field(default=None, ge=16)
    """Most tokens in one forward pass of a worker, padding included; the gradients of a batch are added up over as
    many passes as that takes, to the same result.  None: the worker's whole share at once."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Samples one after the other in a row, instead of padded rows; auto is on a GPU only: on CPU padding is faster."""
    activation_checkpointing: bool = False
    """Compute activations again for the backward pass: less memory, about a third slower."""
    compile: bool = False
    """``torch.compile`` the decoder: 6 to 8 percent faster on CPU after 11 to 32 s, for long runs."""
    liger: Literal["auto", "on", "off"] = "auto"
    """Liger's fused kernels; auto is on a GPU where ``liger_kernel`` is installed."""
    cross_entropy: CrossEntropy = "auto"
    """How the loss follows from the decoder's result; auto is Liger's where ``liger`` may be used, or plain."""
    attention: Attention = "auto"
    """auto is eager on a CPU; on a GPU flash where flash-attn is installed and the pass is bf16, else sdpa."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after that many validations without gain, and keep the weights of the best one; None: keep the last."""
    checkpoint_interval_s: float = 15.0
    """Seconds between checkpoints; 0 is after every step."""
    validation_interval: int = 100
    """Steps between validations."""
    validation_samples: int = 100
    """Most samples per validation."""

    def identity_parts(self) -> dict[str, Any]:
        """Everything that decides the result, and nothing else, as flat names and values."""
        decisive = {"phase", "inputs", "objective", "optim", "lora", "precision", "seed"}
        if self.early_stopping_patience is not None:
            decisive |= {"early_stopping_patience", "validation_interval", "validation_samples"}
        settings = self.model_dump(mode="json", include=decisive)
        code = {"serin": _code()} | {name: _version(name) for name in LIBRARIES}
        return _flat({**settings, "code": code})

    def identity(self) -> str:
        """Digest of ``identity_parts``."""
        return digest_of(self.identity_parts())

    @property
    def final(self) -> Path:
        """The result: ``merged/``, and ``adapter/`` with LoRA.  It is there only when it is whole."""
        return Path(self.folder) / FINAL


@cache
def _code() -> str:
    """Digest of the loop's own code: a change of a report or a preflight does not make a checkpoint useless."""
    folder = Path(__file__).parent
    return digest_of({name: digest_of_file(folder / f"{name}.py") for name in MODULES})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dots between the names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
