"""The model that is trained: loaded, given adapters, put on its device, sharded, and written when it is done."""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.errors import UnavailableError
from serin.finetune.adapters import fuse_adapters
from serin.finetune.job import ADAPTER, FINAL, MERGED, Job
from serin.finetune.narrowing import FEED_FORWARD, TOKENWISE, LastBlock, last_block
from serin.finetune.quantized import quantized_options, require_quantization
from serin.finetune.ranks import Ranks

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Call = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class Trainee:
    """A model ready to be trained."""

    model: Any
    """With its adapters."""
    call: Call
    """Runs a function that uses the model; forward passes are made in it, so that a sharded model gathers itself."""
    weights: "dict[str, torch.nn.Parameter]"
    """What is trained, by name; DTensors when sharded."""
    device: "torch.device"
    is_split: bool
    """Whether the logits are the output layer over the decoder's result."""
    is_sharded: bool
    is_packed: bool
    """Whether samples share rows."""
    last: LastBlock | None = None
    """The last block, where it can be computed for some tokens only."""

    @property
    def names(self) -> dict[int, str]:
        """Name of each trained weight by its ``id``."""
        return {id(weight): name for name, weight in self.weights.items()}

    def reshard(self) -> None:
        """Let go of what a pass without a backward pass left gathered."""
        if self.is_sharded:
            self.call.reshard()  # type: ignore[attr-defined]


def trainee_of(job: Job, ranks: Ranks) -> Trainee:
    """The model of a job in this process, as it is before the first step.

    Raises:
        UnavailableError: the job asks for a GPU, for Liger or for 4 bits and there is none.
    """
    device = device_of(job, ranks)
    if job.lora and job.lora.quantized:
        require_quantization()
    model = load_model(job, device)
    is_low = device.type == "cuda" and job.precision == "bf16"
    is_split = _can_be_split(plain(model.eval()), is_low)
    is_sharded = job.strategy == "fsdp2" and ranks.size > 1
    _prepare(job, model, device)
    if job.lora and job.precision == "fp32" and not is_sharded and not job.compile:
        fuse_adapters(model)
    # What a compiler sees should not depend on how many tokens are learned.
    last = _narrowed(plain(model), is_low) if is_split and not job.compile else None
    call: Call = _call
    if is_sharded:
        call = _sharded(model, device, job.precision)
    model.train()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    is_packed = job.packing == "on" or (job.packing == "auto" and device.type == "cuda")
    return Trainee(model, call, weights, device, is_split, is_sharded, is_packed, last)


def device_of(job: Job, ranks: Ranks) -> "torch.device":
    """The device of this process.

    Raises:
        UnavailableError: the job asks for a GPU and there is none.
    """
    import torch

    if job.device == "cpu" or (job.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UnavailableError("This machine has no GPU that torch can use: set device to auto or cpu.")
    return torch.device(ranks.device or "cuda:0")


def load_model(job: Job, device: "torch.device") -> Any:
    """The job's model with fresh adapters on its device; trained weights are fp32."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    options["attn_implementation"] = attention_of(job, device)
    # On a GPU frozen weights are held as they are used: autocast would copy them in every pass.
    is_frozen_bf16 = device.type == "cuda" and job.lora and job.precision == "bf16" and job.strategy == "ddp"
    options["dtype"] = torch.bfloat16 if is_frozen_bf16 else torch.float32
    if job.lora and job.lora.quantized:
        options |= quantized_options(device)
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, **options)
    if job.lora:
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM, r=job.lora.rank, lora_alpha=job.lora.alpha, target_modules="all-linear"
        )
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.23 for an attribute that the latter renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = get_peft_model(model, config)
    is_placed = job.strategy == "fsdp2" or (job.lora and job.lora.quantized)
    return model if is_placed else model.to(device)


def attention_of(job: Job, device: "torch.device") -> str:
    """Which attention transformers is asked for.

    Plain attention on a CPU is, on short samples, a third faster than torch's fused kernel, training included.  With
    packed rows flash attention never looks across samples; the others are given a mask of blocks.

    Raises:
        UnavailableError: the job asks for flash attention and there is none.
    """
    has_flash = device.type == "cuda" and job.precision == "bf16" and find_spec("flash_attn") is not None
    if job.attention == "flash" and not has_flash:
        raise UnavailableError(
            "Attention 'flash' needs a GPU, precision bf16 and the package flash-attn: set finetune.attention to auto "
            "or sdpa."
        )
    if job.attention in ("eager", "sdpa"):
        return job.attention
    if device.type == "cpu":
        return "eager"
    return "flash_attention_2" if has_flash else "sdpa"


def plain(model: Any) -> Any:
    """The model without its adapters' wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def optimizer_of(job: Job, trainee: Trainee) -> "torch.optim.Optimizer":
    """AdamW, with weight decay on matrices only."""
    import torch

    every = list(trainee.weights.values())
    groups = [
        {"params": [weight for weight in every if weight.ndim > 1], "weight_decay": job.optim.weight_decay},
        {"params": [weight for weight in every if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    fused = True if trainee.device.type == "cuda" or not trainee.is_sharded else None
    return torch.optim.AdamW(used, lr=job.optim.learning_rate, betas=(0.9, 0.95), fused=fused)


def whole(tensor: "torch.Tensor") -> "torch.Tensor":
    """A copy of a tensor on the host; every rank must call it for a sharded one."""
    from torch.distributed.tensor import DTensor

    full = tensor.detach()
    if isinstance(full, DTensor):
        full = full.full_tensor()
    return full.cpu() if full.device.type != "cpu" else full.clone()


def like(full: "torch.Tensor", tensor: "torch.Tensor") -> "torch.Tensor":
    """This rank's part of a whole tensor, on the device and with the sharding of another of its shape."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(tensor, DTensor):
        return full.to(tensor.device)
    mesh, placements = tensor.device_mesh, tensor.placements
    return distribute_tensor(full.to(mesh.device_type), mesh, placements, src_data_rank=None)


def weights_of(trainee: Trainee, ranks: Ranks) -> "dict[str, torch.Tensor]":
    """The trained weights on rank 0's host; empty on the others, which must call it too."""
    if not trainee.is_sharded:
        return {name: whole(weight) for name, weight in trainee.weights.items()} if ranks.rank == 0 else {}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: dict[str, Any] = get_model_state_dict(trainee.model, options=options)
    return {name: state[name].detach().clone() for name in trainee.weights} if ranks.rank == 0 else {}


def write_result(job: Job, trainee: Trainee, trained: "Mapping[str, torch.Tensor]") -> None:
    """Write ``final/`` in one visible step: the adapter and the model merged with it, in the base's own type.

    Args:
        job: whose result it is.
        trainee: the model; used up by this unless it is sharded or on a GPU.
        trained: its trained weights, whole and on the host.
    """
    import torch

    host = torch.device("cpu")
    is_here = trainee.device == host and not trainee.is_sharded
    model = trainee.model if is_here else load_model(_on_host(job), host)
    with torch.no_grad():
        weights = dict(model.named_parameters())
        for name, weight in trained.items():
            weights[name].copy_(weight)
    aside = Path(job.folder) / f".{FINAL}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    if job.lora:
        _write_adapter(model, aside / ADAPTER, job.base_name)
        model = model.merge_and_unload(safe_merge=True)
    model.to(_kept_dtype(Path(job.model))).save_pretrained(aside / MERGED)
    aside.rename(job.final)


def _on_host(job: Job) -> Job:
    """The job for a model that is whole, in no fewer bits than the base has."""
    lora = job.lora and job.lora.model_copy(update={"quantized": False})
    return job.model_copy(update={"strategy": "ddp", "attention": "auto", "lora": lora})


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _prepare(job: Job, model: Any, device: "torch.device") -> None:
    """Switch on what the job asks for; before sharding."""
    if _uses_liger(job, device):
        import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance(plain(model))
    if job.activation_checkpointing:
        plain(model).activation_checkpointing_enable({"use_reentrant": False})
    if job.compile:
        plain(model).get_decoder().compile(dynamic=True)


def _uses_liger(job: Job, device: "torch.device") -> bool:
    is_there = find_spec("liger_kernel") is not None
    if job.liger == "on" and not (is_there and device.type == "cuda"):
        raise UnavailableError("Liger's kernels need a GPU and the package liger-kernel: set liger to auto or off.")
    return job.liger != "off" and is_there and device.type == "cuda"


def _sharded(model: Any, device: "torch.device", precision: str) -> Call:
    """Shard every layer and the rest; returns the root, whose call gathers what no layer holds."""
    import torch
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    class Root(torch.nn.Module):
        """What the whole model is called through: some losses call its parts instead of its own forward."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, function: Callable[[], Any]) -> Any:
            return function()

    is_low = device.type == "cuda" and precision == "bf16"  # on CPU autocast alone decides the type
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if is_low else MixedPrecisionPolicy()
    mesh = init_device_mesh(device.type, (get_world_size(),))
    root = Root()
    for part in [*_layers(model), root]:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            module.set_gradient_divide_factor(1.0)  # the loop divides by the tokens of all ranks
    return root


def _layers(model: Any) -> Iterator[Any]:
    names = set(getattr(plain(model), "_no_split_modules", None) or ())
    return (module for module in model.modules() if type(module).__name__ in names)


def _kept_dtype(folder: Path) -> "torch.dtype":
    """The type that a base keeps its weights in."""
    import torch

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return torch.bfloat16 if name == "bfloat16" else torch.float16 if name == "float16" else torch.float32


def _can_be_split(model: Any, is_low: bool) -> bool:
    """Whether the logits are the output layer over the decoder's result, with no step of the model's own between."""
    import torch

    ids = torch.arange(8, device=model.device)[None]
    with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=is_low):
        logits = model(input_ids=ids, use_cache=False).logits
        apart = model.get_output_embeddings()(model.get_decoder()(input_ids=ids, use_cache=False)[0])
    return logits.shape == apart.shape and bool(torch.allclose(logits, apart, rtol=1e-4, atol=1e-4))


def _narrowed(model: Any, is_low: bool) -> LastBlock | None:
    """The last block, as far as computing some tokens only gives what computing all of them gives."""
    for names in (TOKENWISE, (FEED_FORWARD,)):
        last = last_block(model, names)
        if last is not None and _is_tokenwise(model, last, is_low):
            return last
        if last is not None:
            last.release()
    logger.info("The last block of %s cannot be computed in parts.", type(model).__name__)
    return None


def _is_tokenwise(model: Any, last: LastBlock, is_low: bool) -> bool:
    import torch

    ids, some = torch.arange(8, device=model.device)[None], torch.tensor([1, 2, 6], device=model.device)
    states = []
    try:
        with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=is_low):
            for tokens in (None, some):
                last.only(tokens)
                states.append(model.get_decoder()(input_ids=ids, use_cache=False)[0].flatten(0, 1)[some])
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return bool(torch.allclose(states[0], states[1], rtol=1e-3, atol=1e-3))


def _write_adapter(model: Any, folder: Path, base_name: str) -> None:
    # Without embedding layers: deciding about them, PEFT would ask the hub for the base's config.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # PEFT keeps the modules in a set, whose order changes from process to process, and the folder that it read.
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = base_name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
