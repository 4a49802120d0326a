"""Settings of the fine-tune stage."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from serin.core.config import Section
from serin.finetune.objectives import CrossEntropy, Objective, ObjectiveSpec
from serin.finetune.publish import PublishConfig

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["bf16", "fp32"]
Method = Literal["lora", "full", "qlora"]
Strategy = Literal["ddp", "fsdp2"]
Choice = Literal["auto", "on", "off"]
Attention = Literal["auto", "eager", "sdpa", "flash"]


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


class DevicePrice(Section):
    """One kind of device in the price table; write down what you pay and what you measured."""

    memory_gib: float = Field(gt=0)
    """Memory of one device."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """Price of one device for an hour; None leaves the cost out."""
    tflops: float | None = Field(default=None, gt=0)
    """What it sustains in training, 10^12 operations a second: its peak times the fraction that you reach; None leaves
    the time out."""


class FinetuneConfig(PhaseConfig):
    """Settings of the fine-tune stage."""

    objective: Objective = "sft"
    """Loss on the answers of conversations, on the documents' text (continued pretraining), or on pairs of a better
    and a worse answer (DPO)."""
    dpo_beta: float = Field(default=0.1, gt=0)
    """DPO: how strongly the model is held to its base; smaller lets it move further."""
    method: Method = "lora"
    """Train low-rank adapters on every linear layer, all weights, or adapters on a base in 4 bits (needs a GPU)."""
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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the workers train; auto is a GPU where there is one."""
    strategy: Strategy = "ddp"
    """Every worker holds the whole model, or a part of it (FSDP2)."""
    micro_batch_tokens: int | None = Field(default=None, ge=16)
    """Most tokens in one forward pass of a worker, padding included: a batch is computed in as many passes as that
    takes.  None: a worker's whole share at once."""
    packing: Choice = "auto"
    """Samples one after the other in a row instead of padded rows; auto is on a GPU only, where it is faster."""
    activation_checkpointing: bool = False
    """Compute activations again for the backward pass: less memory, about a third slower."""
    compile: bool = False
    """``torch.compile`` the decoder; worth its start-up on long runs only."""
    liger: Choice = "auto"
    """Liger's fused kernels; auto is on a GPU where they are installed."""
    cross_entropy: CrossEntropy = "auto"
    """How the loss follows from the decoder's result: ``plain`` logits, torch's ``chunked`` ones, which are never there
    all at once, or ``liger``'s kernel.  auto is Liger's on a GPU where it is installed, else plain."""
    attention: Attention = "auto"
    """``eager``, torch's fused ``sdpa``, or ``flash``, which needs a GPU and the package flash-attn and never looks
    across packed samples.  auto is eager on a CPU; on a GPU flash where it is installed, else sdpa."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after that many validations without gain and keep the best weights; None: train to the end."""
    num_workers: int = Field(default=1, ge=0)
    """Ray Train workers that share each batch; 0 trains in this process, without Ray."""
    cpus_per_worker: int = Field(default=2, ge=1)
    """CPUs and threads of a worker."""
    max_failures: int = Field(default=2, ge=0)
    """How many times Ray starts again, from the last checkpoint, after a worker died."""
    checkpoint_interval_s: float = Field(default=15.0, ge=0)
    """Seconds between checkpoints; 0 is after every step."""
    checkpoint_uri: str = ""
    """Storage that checkpoints are copied to, for a run that goes on elsewhere; empty: below the store when that is
    remote, else none."""
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with as few workers as that when one cannot be had again; none waits for all."""
    ray_address: str = "local"
    """A Ray cluster that runs already; ``local`` starts one on this machine."""
    validation_interval: int = Field(default=100, ge=1)
    """Steps between validations; the first and the last step are always validated."""
    validation_samples: int = Field(default=100, ge=1)
    """Most samples per validation: the first ones of the split."""
    prices: dict[str, DevicePrice] = Field(default_factory=dict)
    """Price table of ``serin finetune plan``: name of a device to its price, speed and memory."""
    publish: PublishConfig = PublishConfig()
    """Where the tuned model is pushed to, besides the store."""
    tiny: TinyConfig = TinyConfig()
    """The base ``serin://tiny``; unused with other bases."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.tiny.max_positions < self.max_length:
            raise ValueError(f"tiny.max_positions ({self.tiny.max_positions}) is below max_length ({self.max_length})")
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> Self:
        if self.method == "qlora" and self.strategy == "fsdp2":
            raise ValueError("a base in 4 bits cannot be sharded: use method lora with fsdp2, or strategy ddp")
        if self.method == "qlora" and self.device == "cpu":
            raise ValueError("method qlora needs a GPU: use lora, or set device to auto or cuda")
        if self.objective == "dpo" and self.cross_entropy in ("chunked", "liger"):
            raise ValueError(f"cross_entropy {self.cross_entropy} gives no loss of each token, which dpo needs")
        return self

    @model_validator(mode="after")
    def _workers_fit(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) is above num_workers ({self.num_workers})")
        return self

    def objective_spec(self) -> ObjectiveSpec:
        """What the loop minimises."""
        return ObjectiveSpec(kind=self.objective, beta=self.dpo_beta)

    def identity(self) -> dict[str, Any]:
        """The settings that decide what the model becomes; the others decide only how it gets there."""
        how = {
            "num_workers",
            "cpus_per_worker",
            "max_failures",
            "checkpoint_interval_s",
            "prices",
            "checkpoint_uri",
            "min_workers",
            "ray_address",
            "publish",
            "tiny",
        }
        how |= {"device", "strategy", "micro_batch_tokens", "packing", "activation_checkpointing", "compile", "liger"}
        how |= {"cross_entropy", "attention"}
        if self.early_stopping_patience is None:
            how |= {"validation_interval", "validation_samples"}
        if self.objective != "dpo":
            how |= {"dpo_beta"}
        return self.model_dump(mode="json", exclude=how)

    def numerics(self) -> dict[str, Any]:
        """The settings that promise the same model and can still change its last digits: what a repetition needs."""
        names = {"num_workers", "cpus_per_worker", "device", "strategy", "micro_batch_tokens", "packing"}
        names |= {"activation_checkpointing", "compile", "liger", "cross_entropy", "attention"}
        return self.model_dump(mode="json", include=names)

    def base_identity(self) -> dict[str, Any]:
        """The settings that decide what ``serin://tiny`` becomes."""
        shared = self.model_dump(mode="json", include={"max_length", "precision", "seed"})
        return {**shared, "tiny": self.tiny.dump()}


def phase_of(config: PhaseConfig) -> PhaseConfig:
    """The training settings alone, without those of the section around them."""
    return PhaseConfig.model_validate({name: getattr(config, name) for name in PhaseConfig.model_fields})
