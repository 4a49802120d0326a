"""What one training step needs, found by running it on tensors without storage.

The model is built from its config alone, on the meta device, and takes one step, forward and backward, on fake tensors:
every operation runs its shape arithmetic and none its numbers.  The sizes of what is alive are added up as they come
and go, so that attention, adapters, checkpointing and any architecture that transformers knows count as they are, not
by a formula for a typical one.  Of deep models with equal layers two shallow copies are run.  No weight is read.

Tensors are counted, not what an allocator keeps beside them: on a CPU, glibc held 1.2 to 2.5 times as much (measured,
models of 30 M weights) and gave it back only under a small MALLOC_MMAP_THRESHOLD_, which makes training slower.

Not traced, and added by arithmetic: AdamW's two fp32 moments per trained weight, the flat copies of gradients that
workers exchange, sharding (each worker holds its part, and two whole blocks while it computes), and the weights of
QLoRA (4-bit NormalFloat with double quantisation: 4.127 bits a weight, Dettmers et al. 2023, arXiv:2305.14314).
"""

import copy
import gc
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from serin.core.config import Section
from serin.core.errors import InputError
from serin.finetune.adapters import fuse_adapters
from serin.finetune.config import Method, Strategy
from serin.finetune.narrowing import last_block

if TYPE_CHECKING:
    import torch

Peaks = list[dict[str, int]]
DEEP = 12
SHALLOW = (4, 6)
FP32, BF16 = 4, 2
ADAM_STATES = 2
NF4_BYTES = 4.127 / 8
BUCKET_NUMBERS = 25_000_000
"""Gradients travel in flat copies of at most so many numbers (``ranks.BUCKET_NUMBERS``)."""
UNSHARDED_BLOCKS = 2
"""FSDP2 gathers the next block while this one computes."""


class StepShape(Section):
    """One step of one worker."""

    method: Method = "lora"
    """What is trained."""
    lora_rank: int = Field(default=32, ge=1)
    """Rank of the adapters; unused with ``full``."""
    precision: str = "bf16"
    """Arithmetic of the forward pass."""
    frozen_dtype: Literal["fp32", "bf16"] = "fp32"
    """What weights that are not trained are kept in."""
    rows: int = Field(default=1, ge=1)
    """Sequences of a micro batch."""
    tokens: int = Field(default=512, ge=2)
    """Their length, padding included."""
    learned: int | None = Field(default=None, ge=1)
    """Tokens that the loss counts; None is all of them."""
    attention: Literal["eager", "sdpa"] = "eager"
    """Whether the (tokens, tokens) weights are written out."""
    activation_checkpointing: bool = False
    """Blocks keep their input only and compute again on the way back."""
    strategy: Strategy = "ddp"
    """Whether each worker holds everything, or its part."""
    workers: int = Field(default=1, ge=1)
    """Workers that train together."""


class StepCost(Section):
    """What a step of that shape needs on each device; bytes at the moment when the sum is largest."""

    num_parameters: int
    """Weights of the model, adapters included."""
    num_trainable: int
    """Those that are trained."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Kept for the way back, and working copies."""
    logits: int
    """Everything as wide as the vocabulary."""
    communication: int
    """Gradients on their way to the other workers."""
    flops_per_token: float
    """Forward and backward, per token of the batch."""

    @property
    def total(self) -> int:
        """Bytes per device."""
        parts = (self.weights, self.gradients, self.optimizer, self.activations, self.logits, self.communication)
        return sum(parts)


def step_cost(model_config: Any, shape: StepShape) -> StepCost:
    """Trace one step.

    Args:
        model_config: a transformers config of a causal language model.
        shape: method and batch.

    Raises:
        InputError: the model's code cannot be traced without weights.
    """
    model, sizes = _built(model_config, shape)
    try:
        if sizes.num_layers < DEEP or not sizes.is_uniform:
            peaks, flops = _traced(model, model_config, shape)
        else:
            del model
            peaks, flops = _extrapolated(model_config, shape, sizes.num_layers)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"A {model_config.model_type} cannot be planned without its weights ({reason}): train it on a small sample "
            "and look at its memory instead."
        ) from error
    peak = max(peaks, key=lambda parts: sum(parts.values()))
    return _cost(shape, sizes, peak, flops / (shape.rows * shape.tokens))


def _traced(model: Any, model_config: Any, shape: StepShape) -> "tuple[Peaks, float]":
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _fill(model)
        return _trace(model, model_config, shape)


def _extrapolated(model_config: Any, shape: StepShape, num_layers: int) -> "tuple[Peaks, float]":
    """Two shallow copies of the model, and the straight line through them.

    What lives before the first block has its gradients grows by a constant with every block, and so does what lives
    after it: on the way back each block lets its activations go and gains its gradients, so that the most is at one
    end or the other, whatever the depth.
    """
    traces = []
    for depth in SHALLOW:
        shallow = copy.deepcopy(model_config)
        shallow.num_hidden_layers = depth
        if getattr(shallow, "layer_types", None):
            shallow.layer_types = shallow.layer_types[:depth]
        traces.append(_traced(_built(shallow, shape)[0], shallow, shape))
    (low, low_flops), (high, high_flops) = traces
    times = (num_layers - SHALLOW[0]) / (SHALLOW[1] - SHALLOW[0])
    peaks = [
        {kind: max(0, round(first[kind] + times * (second[kind] - first[kind]))) for kind in first}
        for first, second in zip(low, high, strict=True)
    ]
    return peaks, low_flops + times * (high_flops - low_flops)


class _Sizes:
    """Numbers of weights."""

    def __init__(self, model: Any, shape: StepShape) -> None:
        from torch import nn

        every = list(model.parameters())
        self.parameters = sum(weight.numel() for weight in every)
        trained = [weight.numel() for weight in every if weight.requires_grad]
        self.trainable, self.largest = sum(trained), max(trained, default=0)
        frozen = [
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and not module.weight.requires_grad and "lm_head" not in name
        ]
        self.quantised = sum(frozen) if shape.method == "qlora" else 0
        self.largest_quantised = max(frozen, default=0) if shape.method == "qlora" else 0
        blocks = [sum(weight.numel() for weight in block.parameters()) for block in _blocks(model)]
        self.block = max(blocks, default=0)
        self.num_layers = len(blocks)
        self.is_uniform = len(set(blocks)) == 1


def _blocks(model: Any) -> list[Any]:
    """The model's layers: the longest list of modules in it."""
    from torch import nn

    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _built(model_config: Any, shape: StepShape) -> tuple[Any, _Sizes]:
    """The model on the meta device, with its adapters."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_config(
            model_config, dtype=torch.float32, attn_implementation=shape.attention, trust_remote_code=False
        )
        if shape.method != "full":
            from peft import LoraConfig, TaskType, get_peft_model

            lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=shape.lora_rank, target_modules="all-linear")
            model = get_peft_model(model, lora, low_cpu_mem_usage=True)
            if shape.precision == "fp32" and shape.strategy == "ddp":
                fuse_adapters(model)
        if shape.activation_checkpointing:
            plain = model.get_base_model() if hasattr(model, "get_base_model") else model
            plain.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train(), _Sizes(model, shape)


def _fill(model: Any) -> None:
    """Give every weight and buffer a fake tensor on the CPU; weights that are shared stay shared."""
    import torch

    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the original is kept, so that its id stays its own

    def fake(tensor: "torch.Tensor") -> "torch.Tensor":
        if id(tensor) not in made:
            empty: torch.Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, torch.nn.Parameter):
                empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
            made[id(tensor)] = (tensor, empty)
        return made[id(tensor)][1]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})


def _trace(model: Any, model_config: Any, shape: StepShape) -> "tuple[Peaks, float]":
    """Bytes by kind at the peaks of a step, and its floating point operations."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    is_bf16 = shape.precision == "bf16"
    casts = is_bf16 and shape.strategy == "ddp"
    for weight in model.parameters():
        # Sharded weights are gathered in bf16 block by block; elsewhere autocast makes and keeps the copies.
        low = not weight.requires_grad and (shape.frozen_dtype == "bf16" or shape.method == "qlora")
        if low or (is_bf16 and shape.strategy == "fsdp2"):
            weight.data = torch.empty(weight.shape, dtype=torch.bfloat16)
    flops = FlopCounterMode(display=False)
    with _alive(model, _vocabulary(model_config), shape.activation_checkpointing) as alive, flops:
        ids = torch.zeros((shape.rows, shape.tokens), dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, enabled=casts or shape.method == "qlora"):
            logits = _logits(model, ids, shape)
        labels = torch.zeros(logits.shape[0], dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        del logits, labels
        loss.backward()
    return alive.peaks, float(flops.get_total_flops())


def _logits(model: Any, ids: "torch.Tensor", shape: StepShape) -> "torch.Tensor":
    """(learned, vocabulary), made as ``objectives`` makes them."""
    import torch

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    every = shape.rows * (shape.tokens - 1)
    rows = torch.arange(min(shape.learned or every, every))
    head = plain.get_output_embeddings()
    if head is None:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return logits.reshape(every, -1).index_select(0, rows)
    if (last := last_block(plain)) is not None:
        last.only(rows)
    try:
        hidden = plain.get_decoder()(input_ids=ids, use_cache=False)[0]
    except TypeError:
        if last is None:
            raise
        last.release()  # it takes more than the tokens: the loop computes all of it then, too
        hidden = plain.get_decoder()(input_ids=ids, use_cache=False)[0]
    result: torch.Tensor = head(hidden.flatten(0, 1).index_select(0, rows))
    return result


def _vocabulary(model_config: Any) -> int:
    return int(model_config.get_text_config().vocab_size)


def _cost(shape: StepShape, sizes: _Sizes, peak: dict[str, int], flops_per_token: float) -> StepCost:
    weights, gradients = peak["weights"], peak["gradients"]
    optimizer = ADAM_STATES * FP32 * sizes.trainable
    activations, logits = peak["activations"], peak["logits"]
    # The optimizer's own peak, when the batch is gone and all gradients are there; fused AdamW makes no copies.
    if gradients + activations + logits < FP32 * sizes.trainable:
        gradients, activations, logits = FP32 * sizes.trainable, 0, 0
    if sizes.quantised:
        weights += round(sizes.quantised * (NF4_BYTES - BF16)) + BF16 * sizes.largest_quantised
    communication = 0
    if shape.workers > 1 and shape.strategy == "ddp":
        communication = FP32 * min(sizes.trainable, max(BUCKET_NUMBERS, sizes.largest))
    if shape.strategy == "fsdp2":
        frozen = sizes.parameters - sizes.trainable
        kept = FP32 * sizes.trainable + (BF16 if shape.frozen_dtype == "bf16" else FP32) * frozen
        weights = -(-kept // shape.workers) + UNSHARDED_BLOCKS * BF16 * sizes.block
        gradients = -(-FP32 * sizes.trainable // shape.workers)
        optimizer = -(-optimizer // shape.workers)
    return StepCost(
        num_parameters=sizes.parameters,
        num_trainable=sizes.trainable,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        communication=communication,
        flops_per_token=flops_per_token,
    )


@contextmanager
def _alive(model: Any, vocabulary: int, collects: bool) -> Iterator[Any]:
    """Count the bytes of all storages that live, from now on, by kind.

    ``peaks`` are the two times when they are most: before and after the first block has its gradients.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Alive(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.live = dict.fromkeys(("weights", "gradients", "activations", "logits"), 0)
            self.peaks: Peaks = [dict(self.live), dict(self.live)]
            self.is_back = False
            self.kinds: dict[int, tuple[str, int]] = {}

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if hasattr(tensor, "untyped_storage"):
                    self.note(tensor, "logits" if tensor.shape[-1:] == (vocabulary,) else "activations")
            return result

        def note(self, tensor: Any, kind: str) -> None:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.kinds:
                self.kinds[key] = (kind, storage.nbytes())
                self.live[kind] += storage.nbytes()
                weakref.finalize(storage, self.gone, key).atexit = False
                if sum(self.live.values()) > sum(self.peaks[self.is_back].values()):
                    self.peaks[self.is_back] = dict(self.live)

        def gone(self, key: int) -> None:
            kind, size = self.kinds.pop(key)
            self.live[kind] -= size

        def is_gradient(self, weight: Any) -> None:
            self.is_back = self.is_back or id(weight) in inside
            if collects:
                gc.collect()  # what checkpointing recomputed hangs in cycles
            key = weight.grad.untyped_storage()._cdata
            if key in self.kinds:
                kind, size = self.kinds[key]
                self.live[kind] -= size
                self.live["gradients"] += size
                self.kinds[key] = ("gradients", size)

    inside = {id(weight) for block in _blocks(model) for weight in block.parameters()}
    alive = Alive()
    handles = []
    for weight in model.parameters():
        alive.note(weight, "weights")
        if weight.requires_grad:
            handles.append(weight.register_post_accumulate_grad_hook(alive.is_gradient))
    gc.freeze()
    try:
        with alive:
            yield alive
    finally:
        gc.unfreeze()
        for handle in handles:
            handle.remove()
