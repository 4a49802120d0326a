"""Preflight: what a training needs and costs, before a GPU is asked for.

Everything comes from the base's config and tokenizer, the dataset and the price table in the config: no weight is
loaded, and nothing that is not in the table is guessed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from serin.core.artifacts import Artifact
from serin.core.config import Section
from serin.core.errors import ConfigError
from serin.core.prompts import Prompt
from serin.core.records import Conversation, read_jsonl
from serin.finetune.base import TINY, BaseFolder, require_positions, resolved
from serin.finetune.config import DevicePrice, FinetuneConfig
from serin.finetune.data import Sample, encode_conversations, encode_texts, epoch_batches, require_trainable
from serin.finetune.documents import public_documents
from serin.finetune.memory import StepCost, StepShape, step_cost
from serin.finetune.preferences import encode_preferences, load_preferences, require_pairs

GIB = 2**30
HEADROOM = 0.1
"""Fraction of a device's memory that a plan leaves to its runtime and to fragmentation."""
MOST_WORKERS = 64
SMALLEST_MICRO_BATCH = 64


class Memory(Section):
    """Estimated memory per device at the peak of a step, GiB."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    communication: float
    total: float


class Plan(Section):
    """What a training would be."""

    base_model: str
    revision: str
    """The hub's commit, where the base comes from there."""
    licence: str
    objective: str
    method: str
    num_parameters: int
    num_trainable: int
    trainable_fraction: float
    num_samples: int | None
    """Samples or pairs; None when only a number of tokens was given."""
    num_tokens: int
    """Tokens of one epoch."""
    num_steps: int
    tokens_trained: int
    """Over all epochs."""
    device: str
    """From the price table; empty: this machine's kind is unknown and nothing is compared."""
    num_devices: int
    micro_batch: tuple[int, int]
    """Sequences and their length in the largest forward pass of a worker."""
    memory_gib: Memory
    device_memory_gib: float | None
    usable_memory_gib: float | None
    """Without the headroom."""
    fits: bool | None
    """None when the device's memory is not known."""
    remedies: tuple[str, ...] = ()
    """Changes of the settings that would make it fit, with what they need."""
    hours: float | None = None
    cost_usd: float | None = None
    notes: tuple[str, ...] = ()
    """What was left out or assumed."""

    def require_fit(self) -> "Plan":
        """Itself, unless it cannot fit.

        Raises:
            ConfigError: naming what is needed, what is there and what would make it fit.
        """
        if self.fits is False:
            ways = "; or ".join(self.remedies) or "take a smaller base or a device with more memory"
            raise ConfigError(
                f"Fine-tuning {self.base_model} with {self.method} needs {self.memory_gib.total:.1f} GiB a device and "
                f"{self.device} has {self.usable_memory_gib:.1f} GiB to use: {ways}."
            )
        return self


def plan(
    config: FinetuneConfig,
    base_model: str,
    *,
    num_tokens: int | None = None,
    dataset: Artifact | None = None,
    documents: Artifact | None = None,
    prompt: Prompt | None = None,
    device: str = "",
) -> Plan:
    """Estimate memory, steps, time and cost.

    Args:
        config: the stage's settings, with the price table.
        base_model: ``serin://tiny``, a hub id, a folder or ``s3://``; config and tokenizer are read, no weights.
        num_tokens: tokens of an epoch, when there is no dataset yet; samples are then taken to be ``max_length`` long.
        dataset: what would be trained on.
        documents: what the objective ``pretrain`` would read.
        prompt: the release's prompt; the default one if None.
        device: a name in ``config.prices``; may be left out when the table has one entry or none.

    Raises:
        ConfigError: neither tokens nor a dataset, an unknown device, or lengths that the base cannot take.
        InputError: the base or the data cannot be used.
    """
    if (num_tokens is None) == (dataset is None):
        raise ConfigError("A plan needs either a dataset or a number of tokens: give --dataset or --tokens.")
    name, price = _device(config.prices, device)
    with _base(base_model) as folder:
        model_config = _model_config(config, folder)
        if folder is not None:
            require_positions(folder, config.max_length)
        if dataset is None:
            load = Load.of_tokens(config, num_tokens or 0)
        else:
            load = Load.of_dataset(config, folder, dataset, documents, prompt or Prompt())
        about = (folder.revision, folder.licence) if folder else ("", "that of the corpus")
    return _planned(config, base_model, about, model_config, load, name, price)


@dataclass(frozen=True)
class Load:
    """What is trained on, in numbers."""

    num_samples: int | None
    num_tokens: int
    num_steps: int
    tokens_trained: int
    longest: int
    """Tokens of the longest sequence."""
    learned_fraction: float
    """Most learned tokens of a batch, as a fraction of its tokens with padding."""
    num_left_out: int = 0

    @classmethod
    def of_tokens(cls, config: FinetuneConfig, num_tokens: int) -> "Load":
        """A number of tokens in full batches of samples of full length, all of them learned."""
        if num_tokens < 1:
            raise ConfigError(f"--tokens is {num_tokens}: give the tokens of one epoch, 1 or more.")
        steps = config.max_steps or max(1, round(config.epochs * math.ceil(num_tokens / config.tokens_per_batch)))
        trained = steps * config.tokens_per_batch if config.max_steps else round(config.epochs * num_tokens)
        return cls(None, num_tokens, steps, trained, config.max_length, 1.0)

    @classmethod
    def of_dataset(
        cls,
        config: FinetuneConfig,
        base: BaseFolder | None,
        dataset: Artifact,
        documents: Artifact | None,
        prompt: Prompt,
    ) -> "Load":
        """The samples that training would see, encoded with the base's tokenizer."""
        samples, left_out = _encoded(config, base, dataset, documents, prompt)
        per_row = 2 if config.objective == "dpo" else 1
        sizes = [len(sample.ids) for sample in samples]
        lengths = [sum(sizes[start : start + per_row]) for start in range(0, len(sizes), per_row)]
        learned = [sample.num_learned for sample in samples]
        batches = epoch_batches(lengths, config.tokens_per_batch, seed=0, epoch=0)
        steps = config.max_steps or max(1, round(config.epochs * len(batches)))
        fractions = []
        for batch in batches:
            rows = [row * per_row + part for row in batch for part in range(per_row)]
            width = max(sizes[row] for row in rows)
            fractions.append(sum(learned[row] for row in rows) / (len(rows) * width))
        trained = round(sum(sizes) * steps / len(batches))
        return cls(len(lengths), sum(sizes), steps, trained, max(sizes), max(fractions), left_out)


def shape_of(config: FinetuneConfig, load: Load, is_gpu: bool) -> StepShape:
    """The largest forward pass of a worker."""
    workers = max(1, config.num_workers)
    share = math.ceil(config.tokens_per_batch / workers)
    budget = min(share, config.micro_batch_tokens or share)
    rows = max(1, budget // load.longest)
    if load.num_samples is not None:
        rows = min(rows, max(1, math.ceil(load.num_samples / workers)))
    if config.objective == "dpo":
        rows = max(2, rows + rows % 2)  # a pair is never parted
    is_low = is_gpu and config.precision == "bf16" and config.strategy == "ddp" and config.method != "full"
    return StepShape(
        method=config.method,
        lora_rank=config.lora_rank,
        precision=config.precision,
        frozen_dtype="bf16" if is_low else "fp32",
        rows=rows,
        tokens=max(2, load.longest),
        learned=max(1, math.ceil(rows * load.longest * load.learned_fraction)),
        attention="sdpa" if is_gpu else "eager",
        activation_checkpointing=config.activation_checkpointing,
        strategy=config.strategy,
        workers=workers,
    )


def _planned(
    config: FinetuneConfig,
    base_model: str,
    about: tuple[str, str],
    model_config: Any,
    load: Load,
    device: str,
    price: DevicePrice | None,
) -> Plan:
    is_gpu = config.device == "cuda" or (config.device == "auto" and price is not None) or config.method == "qlora"
    shape = shape_of(config, load, is_gpu)
    cost = step_cost(model_config, shape)
    usable = price.memory_gib * (1 - HEADROOM) if price else None
    fits = None if usable is None else cost.total / GIB <= usable
    remedies = tuple(_remedies(config, model_config, load, is_gpu, usable)) if fits is False and usable else ()
    hours = _hours(cost.flops_per_token * load.tokens_trained, price, shape.workers)
    rate = price.usd_per_hour if price else None
    return Plan(
        base_model=base_model,
        revision=about[0],
        licence=about[1],
        objective=config.objective,
        method=config.method,
        num_parameters=cost.num_parameters,
        num_trainable=cost.num_trainable,
        trainable_fraction=cost.num_trainable / cost.num_parameters,
        num_samples=load.num_samples,
        num_tokens=load.num_tokens,
        num_steps=load.num_steps,
        tokens_trained=load.tokens_trained,
        device=device,
        num_devices=shape.workers,
        micro_batch=(shape.rows, shape.tokens),
        memory_gib=_memory(cost),
        device_memory_gib=price.memory_gib if price else None,
        usable_memory_gib=usable,
        fits=fits,
        remedies=remedies,
        hours=hours,
        cost_usd=hours * rate * shape.workers if hours is not None and rate is not None else None,
        notes=tuple(_notes(config, base_model, load, price)),
    )


def _remedies(config: FinetuneConfig, model_config: Any, load: Load, is_gpu: bool, usable: float) -> Iterable[str]:
    """Changes that fit, the least costly first; each is traced like the plan itself."""

    def needs(changes: Mapping[str, Any]) -> float:
        changed = config.model_copy(update=dict(changes))
        return step_cost(model_config, shape_of(changed, load, is_gpu)).total / GIB

    def said(changes: Mapping[str, Any], gib: float) -> str:
        return f"set {' and '.join(f'{name}={value}' for name, value in changes.items())} ({gib:.1f} GiB)"

    found = False
    for changes in _single_changes(config, load, is_gpu):
        if (gib := needs(changes)) <= usable:
            found = True
            yield said(changes, gib)
    if found:
        return
    smallest: dict[str, Any] = {"micro_batch_tokens": _smallest_pass(config, load), "activation_checkpointing": True}
    for method in _lighter_methods(config.method, is_gpu):
        changes = {"method": method, **smallest}
        if (gib := needs(changes)) <= usable:
            yield said(changes, gib)
            return
    sharded = {"strategy": "fsdp2", **smallest, **({"method": "lora"} if config.method != "full" else {})}
    for workers in _more_workers(config):
        if (gib := needs({**sharded, "num_workers": workers})) <= usable:
            yield said({**sharded, "num_workers": workers}, gib)
            return


def _single_changes(config: FinetuneConfig, load: Load, is_gpu: bool) -> Iterable[dict[str, Any]]:
    workers = max(1, config.num_workers)
    budget = min(math.ceil(config.tokens_per_batch / workers), config.micro_batch_tokens or config.tokens_per_batch)
    smallest = _smallest_pass(config, load)
    halves = [budget >> times for times in range(1, 20) if budget >> times > smallest]
    if budget > smallest:
        yield {"micro_batch_tokens": max(halves[0] if halves else smallest, smallest)}
        yield {"micro_batch_tokens": smallest}
    if not config.activation_checkpointing:
        yield {"activation_checkpointing": True}
    for method in _lighter_methods(config.method, is_gpu)[1:]:
        yield {"method": method}
    if config.method != "qlora":
        for more in _more_workers(config):
            if more <= workers * 8:
                yield {"strategy": "fsdp2", "num_workers": more}


def _lighter_methods(method: str, is_gpu: bool) -> list[str]:
    """This method and the lighter ones; 4 bits are for GPUs."""
    every = ["full", "lora", "qlora"] if is_gpu else ["full", "lora"]
    return every[every.index(method) :] if method in every else [method]


def _more_workers(config: FinetuneConfig) -> list[int]:
    workers = max(1, config.num_workers)
    return [number for number in (workers * 2**power for power in range(1, 7)) if number <= MOST_WORKERS]


def _smallest_pass(config: FinetuneConfig, load: Load) -> int:
    return max(SMALLEST_MICRO_BATCH, load.longest * (2 if config.objective == "dpo" else 1))


def _hours(flops: float, price: DevicePrice | None, num_devices: int) -> float | None:
    if price is None or price.tflops is None:
        return None
    return flops / (price.tflops * 1e12 * num_devices) / 3600


def _notes(config: FinetuneConfig, base_model: str, load: Load, price: DevicePrice | None) -> Iterable[str]:
    if price is None:
        yield "finetune.prices is empty: time and cost are left out, and memory is compared with no device."
    else:
        if price.tflops is None:
            yield "The price table has no tflops for this device: time and cost are left out."
        elif price.usd_per_hour is None:
            yield "The price table has no usd_per_hour for this device: cost is left out."
        yield f"{HEADROOM:.0%} of the device's memory is left to its runtime and to fragmentation."
    if load.num_samples is None:
        yield f"Without a dataset, samples are taken to be {config.max_length} tokens long and learned whole."
    if load.num_left_out:
        yield f"{load.num_left_out} samples are longer than max_length={config.max_length} and are left out."
    if base_model == TINY:
        yield "The pretraining of serin://tiny itself is not in the plan, and its tokenizer is taken to be full."
    if config.objective == "dpo":
        yield "The reference's log-probabilities, one forward pass over the pairs before training, are not in the time."
    if price is None and config.device != "cuda":
        yield "On a CPU the allocator may keep more than the tensors that are counted here."


def _device(prices: Mapping[str, DevicePrice], device: str) -> tuple[str, DevicePrice | None]:
    known = ", ".join(sorted(prices)) or "nothing"
    if device and device not in prices:
        raise ConfigError(f"Device {device!r} is not in finetune.prices, which names {known}: add it with its memory.")
    if not device and len(prices) > 1:
        raise ConfigError(f"finetune.prices names {known}: say with --device which one the plan is for.")
    name = device or next(iter(prices), "")
    return name, prices.get(name)


def _base(base_model: str) -> "AbstractContextManager[BaseFolder | None]":
    return nullcontext() if base_model == TINY else resolved(base_model, with_weights=False)


def _model_config(config: FinetuneConfig, folder: BaseFolder | None) -> Any:
    if folder is None:
        from serin.finetune.tiny import llama_config

        vocabulary: Any = _Vocabulary(config.tiny.vocab_size)
        return llama_config(vocabulary, config.tiny)
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)


class _Vocabulary:
    """A tokenizer's size and special numbers, before there is one."""

    pad_token_id, eos_token_id = 0, 1

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def _encoded(
    config: FinetuneConfig, base: BaseFolder | None, dataset: Artifact, documents: Artifact | None, prompt: Prompt
) -> tuple[Sequence[Sample], int]:
    """Samples of the training split (both of every pair), and how many were too long."""
    conversations = read_jsonl(dataset.path / "train.jsonl", Conversation)
    tokenizer = _tokenizer(config, base, conversations)
    if config.objective == "pretrain":
        if documents is None:
            raise ConfigError("The objective pretrain reads documents: give --documents, or --tokens.")
        texts = [record.text for record in public_documents(documents.path)]
        return encode_texts(tokenizer, texts, config.max_length), 0
    if config.objective == "dpo":
        pairs = encode_preferences(tokenizer, load_preferences(dataset.path)[0], prompt, config.max_length)
        require_pairs(pairs, config.max_length)
        return [sample for pair in pairs.pairs for sample in (pair.chosen, pair.rejected)], pairs.num_left_out
    encoded = encode_conversations(tokenizer, conversations, prompt, config.max_length)
    require_trainable(encoded, config.max_length)
    return encoded.samples, encoded.num_left_out


def _tokenizer(config: FinetuneConfig, base: BaseFolder | None, conversations: Sequence[Conversation]) -> Any:
    if base is None:
        from serin.finetune.tiny import corpus_of, train_tokenizer

        return train_tokenizer(corpus_of([], conversations), config.tiny)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base.path, trust_remote_code=False, local_files_only=True)


def _memory(cost: StepCost) -> Memory:
    names = ("weights", "gradients", "optimizer", "activations", "logits", "communication", "total")
    return Memory(**{name: round(getattr(cost, name) / GIB, 4) for name in names})
