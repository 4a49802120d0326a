"""Settings of the fine-tune stage."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from serin.core.config import Section

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["bf16", "fp32"]


class PhaseConfig(Section):
    """How the weights are moved in one phase of training."""

    epochs: float = Field(default=2.5, gt=0)
    """Passes over the samples; the last one may be a part."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; replaces ``epochs`` when set."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """At its peak."""
    schedule: Schedule = "linear"
    """How the learning rate falls to ``final_fraction`` of its peak after warming up."""
    final_fraction: float = Field(default=0.02, ge=0, le=1)
    """Learning rate of the last step, as a fraction of the peak."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Part of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's, on matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    tokens_per_batch: int = Field(default=2048, ge=16)
    """Most tokens in one optimizer step, padding included, over all workers."""


class TinyConfig(PhaseConfig):
    """The base ``serin://tiny``: a small Llama with a tokenizer of its own, pretrained on the corpus."""

    epochs: float = Field(default=1.5, gt=0)
    """Passes over the corpus; the last one may be a part."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's, on matrices only."""
    vocab_size: int = Field(default=3072, ge=300)
    """Byte-level BPE entries, the 256 bytes and the special tokens included."""
    hidden_size: int = Field(default=192, ge=8)
    """Width of the residual stream."""
    num_layers: int = Field(default=3, ge=2)
    """Transformer blocks."""
    num_heads: int = Field(default=3, ge=1)
    """Attention heads; they share ``hidden_size``."""
    intermediate_size: int = Field(default=512, ge=8)
    """Width of the gated feed-forward layer."""
    rope_theta: float = Field(default=1e6, gt=1)
    """Base of the rotary frequencies."""
    max_positions: int = Field(default=1024, ge=32)
    """Longest sequence that the model may be given, tokens."""
    copying_start: bool = True
    """Start with attention heads that copy from the context instead of waiting for them to form."""
    copy_fraction: float = Field(default=0.05, ge=0, le=0.5)
    """Part of the pretraining samples that are random tokens, said twice: they keep those heads copying."""

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2:
            raise ValueError("hidden_size must be num_heads times an even number")
        return self


class FinetuneConfig(PhaseConfig):
    """Settings of the fine-tune stage."""

    method: Literal["lora", "full"] = "lora"
    """Train low-rank adapters on every linear layer, or all weights."""
    lora_rank: int = Field(default=32, ge=1)
    """Rank of the adapters."""
    lora_alpha: int = Field(default=64, ge=1)
    """The adapters' output is scaled by alpha / rank."""
    max_length: int = Field(default=512, ge=32)
    """Longest sample, tokens; a longer conversation loses context, never its answer."""
    precision: Precision = "bf16"
    """Arithmetic of the forward pass; weights and optimizer state stay fp32."""
    seed: int = 0
    """Decides initial weights and the order of the samples."""
    num_workers: int = Field(default=1, ge=0)
    """Ray Train workers that share each batch; 0 trains in this process, without Ray."""
    cpus_per_worker: int = Field(default=2, ge=1)
    """CPUs and threads of a worker."""
    max_failures: int = Field(default=2, ge=0)
    """How many times Ray starts again, from the last checkpoint, after a worker died."""
    checkpoint_interval_s: float = Field(default=15.0, ge=0)
    """Seconds between checkpoints; 0 is after every step."""
    validation_interval: int = Field(default=100, ge=1)
    """Steps between validations; the first and the last step are always validated."""
    validation_samples: int = Field(default=100, ge=1)
    """Most samples per validation: the first ones of the split."""
    tiny: TinyConfig = TinyConfig()
    """The base ``serin://tiny``; unused with other bases."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.tiny.max_positions < self.max_length:
            raise ValueError(f"tiny.max_positions ({self.tiny.max_positions}) is below max_length ({self.max_length})")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that decide what the model becomes; the others decide only how it gets there."""
        how = {"num_workers", "cpus_per_worker", "max_failures", "checkpoint_interval_s", "validation_interval"}
        return self.model_dump(mode="json", exclude={*how, "validation_samples", "tiny"})

    def base_identity(self) -> dict[str, Any]:
        """The settings that decide what ``serin://tiny`` becomes."""
        shared = self.model_dump(mode="json", include={"max_length", "precision", "seed"})
        return {**shared, "tiny": self.tiny.dump()}


def phase_of(config: PhaseConfig) -> PhaseConfig:
    """The training settings alone, without those of the section around them."""
    return PhaseConfig.model_validate({name: getattr(config, name) for name in PhaseConfig.model_fields})
