"""The training loop: plain PyTorch on CPU, with or without Ray around it.

A ``Job`` is plain values and paths, so that it can be written to a file and run by another process.  ``train`` runs it
from its last checkpoint to its end; the result is the same, bit for bit, however often it was killed in between.
"""

import fcntl
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from serin.core.config import Section
from serin.core.digests import digest_of
from serin.core.errors import InputError, UnavailableError
from serin.core.storage import disk_errors
from serin.finetune.checkpoints import Checkpoint, Checkpoints, optimizer_tensors, restore_optimizer
from serin.finetune.config import PhaseConfig, Precision
from serin.finetune.data import IGNORED, SampleFile, batches_from, epoch_batches

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FINAL, MERGED, ADAPTER, PROGRESS = "final", "merged", "adapter", "progress.jsonl"
LOCK_TIMEOUT_S = 120.0
Report = Callable[[dict[str, Any]], None]


class LoraSpec(Section):
    """Low-rank adapters on every linear layer."""

    rank: int
    """Rank of the adapters."""
    alpha: int
    """Their output is scaled by alpha / rank."""


class Job(Section):
    """One phase of training, whole."""

    phase: Literal["pretraining", "fine-tuning"]
    """For people."""
    model: str
    """Folder of the model that it starts from."""
    base_name: str = ""
    """What the adapter's config calls its base."""
    train: str
    """Samples, as ``save_samples`` writes them."""
    validation: str
    """Samples that are never trained on; may hold none."""
    folder: str
    """Where checkpoints, progress and the result go; survives a kill."""
    inputs: dict[str, str]
    """Digests of the model and the samples."""
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
    checkpoint_interval_s: float = 15.0
    """Seconds between checkpoints."""
    validation_interval: int = 100
    """Steps between validations."""
    validation_samples: int = 100
    """Most samples per validation."""

    def identity(self) -> str:
        """Digest of everything that decides the result, and of nothing else."""
        decisive = {"phase", "inputs", "optim", "lora", "precision", "seed"}
        return digest_of(self.model_dump(mode="json", include=decisive))

    @property
    def final(self) -> Path:
        """The result: ``merged/``, and ``adapter/`` with LoRA.  It is there only when it is whole."""
        return Path(self.folder) / FINAL


class Ranks:
    """The processes that share each batch: here, one."""

    rank = 0
    size = 1

    def sum(self, tensors: "Sequence[torch.Tensor]") -> None:
        """Replace each tensor by its sum over all ranks."""


def train(job: Job, ranks: Ranks | None = None, report: Report | None = None) -> Path:
    """Run a job from its last checkpoint to its end.

    Args:
        job: what to train.
        ranks: the processes that share each batch.
        report: called with every line of progress, besides ``progress.jsonl``.

    Returns:
        The folder of the result; a job that ended before returns it at once.

    Raises:
        InputError: the loss is no longer a number; names the step and the last good checkpoint.
        IntegrityError: the checkpoint belongs to another job.
        StorageError: no disk space.
        UnavailableError: another process trains in the same folder.
    """
    ranks = ranks or Ranks()
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder), _alone(folder / "lock", ranks), (folder / PROGRESS).open("a", encoding="utf-8") as stream:
        if not job.final.exists():

            def line(record: dict[str, Any]) -> None:
                stream.write(json.dumps(record) + "\n")
                stream.flush()
                if report:
                    report(record)

            _Training(job, ranks, line if ranks.rank == 0 else _ignore).run()
    return job.final


def learning_rate(step: int, num_steps: int, optim: PhaseConfig) -> float:
    """Learning rate of a step (0 is the first): a linear rise, then constant, linear or half a cosine."""
    warmup = int(num_steps * optim.warmup_fraction)
    if step < warmup:
        return optim.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, num_steps - 1 - warmup)
    if optim.schedule == "constant":
        height = 1.0
    elif optim.schedule == "linear":
        height = 1.0 - done
    else:
        height = (1.0 + math.cos(math.pi * done)) / 2
    return optim.learning_rate * (optim.final_fraction + (1.0 - optim.final_fraction) * height)


def num_steps_of(lengths: Sequence[int], optim: PhaseConfig) -> int:
    """Optimizer steps of a phase over samples of these lengths."""
    if optim.max_steps is not None:
        return optim.max_steps
    return max(1, round(optim.epochs * len(epoch_batches(lengths, optim.tokens_per_batch, seed=0, epoch=0))))


class _Training:
    """The state of one job in one process."""

    def __init__(self, job: Job, ranks: Ranks, report: Report) -> None:
        import torch

        self.job, self.ranks, self.report = job, ranks, report
        torch.set_num_threads(job.threads)
        torch.manual_seed(job.seed)
        self.samples, self.validation = SampleFile(Path(job.train)), SampleFile(Path(job.validation))
        self.model, self.dtype = _load(job)
        self.weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.optimizer = _optimizer(self.weights.values(), job.optim)
        self.num_steps = num_steps_of(self.samples.lengths, job.optim)
        self.checkpoints = Checkpoints(Path(job.folder) / "checkpoints", job.identity())
        self.step = 0
        self.is_split = _can_be_split(_plain(self.model.eval()))
        self.model.train()

    def run(self) -> None:
        self._resume()
        saved = time.monotonic()
        if self.step == 0:
            self._report(val_loss=self._validate())
        numbers = batches_from(self.samples.lengths, self.job.optim.tokens_per_batch, self.job.seed, self.step)
        while self.step < self.num_steps:
            self._advance(next(numbers))
            if time.monotonic() - saved >= self.job.checkpoint_interval_s and self.step < self.num_steps:
                self._save_checkpoint()
                saved = time.monotonic()
        if self.ranks.rank == 0:
            _write_result(self.job, self.model, self.dtype)

    def _advance(self, indices: Sequence[int]) -> None:
        started = time.monotonic()
        rate = learning_rate(self.step, self.num_steps, self.job.optim)
        loss = self._update(indices, rate)
        self.step += 1
        tokens = sum(self.samples.lengths[index] for index in indices)
        record: dict[str, Any] = {"loss": loss, "lr": rate, "tokens": tokens, "seconds": time.monotonic() - started}
        if self.step % self.job.validation_interval == 0 or self.step == self.num_steps:
            record["val_loss"] = self._validate()
        self._report(**record)

    def _update(self, indices: Sequence[int], rate: float) -> float:
        """One optimizer step; returns the loss per learned token before it."""
        import torch

        loss, count = self._loss(self.samples, indices)
        if loss.requires_grad:
            loss.backward()
        gradients = []
        for weight in self.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
        total = torch.stack([loss.detach(), count])
        self.ranks.sum([total, *gradients])
        mean, divisor = float(total[0] / total[1].clamp(min=1)), total[1].clamp(min=1)
        for gradient in gradients:
            gradient /= divisor
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.job.optim.max_grad_norm)
        if not math.isfinite(mean) or not torch.isfinite(norm):
            raise InputError(self._diverged(mean))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean

    def _loss(self, samples: SampleFile, indices: Sequence[int]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Sum of the loss over this rank's share of the rows, and the number of tokens that it counts."""
        import torch
        from torch.nn.functional import cross_entropy

        share = indices[self.ranks.rank :: self.ranks.size]
        if not share:
            return torch.zeros(()), torch.zeros(())
        # (rows, tokens); padding is on the right, where causal attention does not look, so no mask is needed.
        ids, labels = samples.batch(share, pad_id=_plain(self.model).config.pad_token_id or 0)
        counted = labels[:, 1:] != IGNORED
        with torch.autocast("cpu", torch.bfloat16, enabled=self.job.precision == "bf16"):
            if self.is_split:  # the vocabulary is the widest layer: it is computed for learned tokens only
                hidden = _plain(self.model).get_decoder()(input_ids=ids, use_cache=False)[0][:, :-1]
                logits = _plain(self.model).get_output_embeddings()(hidden[counted])
            else:
                logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1][counted]
        # (learned, vocabulary)
        return cross_entropy(logits.float(), labels[:, 1:][counted], reduction="sum"), counted.sum().float()

    def _validate(self) -> float | None:
        """Loss per learned token over the first validation samples; None when there are none."""
        import torch

        lengths = self.validation.lengths[: self.job.validation_samples]
        total = torch.zeros(2)
        self.model.eval()
        with torch.no_grad():
            for indices in epoch_batches(lengths, self.job.optim.tokens_per_batch, seed=0, epoch=0):
                total += torch.stack(self._loss(self.validation, indices))
        self.model.train()
        self.ranks.sum([total])
        return float(total[0] / total[1]) if total[1] else None

    def _resume(self) -> None:
        import torch

        checkpoint = self.checkpoints.load()
        if checkpoint is None:
            return
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(checkpoint.tensors[f"weight.{name}"])
        restore_optimizer(self.optimizer, checkpoint.tensors)
        torch.set_rng_state(checkpoint.tensors["rng"])
        self.step = checkpoint.step
        logger.info("%s goes on from step %d of %d.", self.job.phase, self.step, self.num_steps)
        self._report(resumed=True)

    def _save_checkpoint(self) -> None:
        import torch

        if self.ranks.rank:
            return
        tensors = {f"weight.{name}": weight.detach() for name, weight in self.weights.items()}
        tensors |= optimizer_tensors(self.optimizer)
        tensors["rng"] = torch.get_rng_state()
        self.checkpoints.save(Checkpoint(self.step, tensors))

    def _report(self, **values: Any) -> None:
        self.report({"phase": self.job.phase, "step": self.step, "steps": self.num_steps, **values})

    def _diverged(self, loss: float) -> str:
        newest = self.checkpoints.newest_step()
        kept = "no checkpoint was written yet" if newest is None else f"the checkpoint of step {newest} is kept"
        what = f"Loss is {loss}" if not math.isfinite(loss) else "The gradient is not a number"
        return (
            f"{what} at step {self.step + 1} of {self.num_steps} of {self.job.phase}: lower its learning_rate "
            f"({self.job.optim.learning_rate:g}) or use precision fp32; {kept}."
        )


def _load(job: Job) -> "tuple[Any, torch.dtype]":
    """The model to train in fp32, with its adapters, and the type that its weights are kept in."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    # Plain attention: on CPU and short samples a third faster, training included, than torch's fused kernel.
    options["attn_implementation"] = "eager"
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, **options)
    kept = _kept_dtype(Path(job.model))
    if job.lora:
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM, r=job.lora.rank, lora_alpha=job.lora.alpha, target_modules="all-linear"
        )
        model = get_peft_model(model, config)
    return model, kept


def _kept_dtype(folder: Path) -> "torch.dtype":
    import torch

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return torch.bfloat16 if name == "bfloat16" else torch.float16 if name == "float16" else torch.float32


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _can_be_split(model: Any) -> bool:
    """Whether the logits are the output layer over the decoder's result, with no step of the model's own between."""
    import torch

    ids = torch.arange(8)[None]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        apart = model.get_output_embeddings()(model.get_decoder()(input_ids=ids, use_cache=False)[0])
    return whole.shape == apart.shape and bool(torch.allclose(whole, apart, rtol=1e-4, atol=1e-4))


def _optimizer(weights: Any, optim: PhaseConfig) -> "torch.optim.Optimizer":
    import torch

    every = list(weights)
    groups = [
        {"params": [weight for weight in every if weight.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [weight for weight in every if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=optim.learning_rate, betas=(0.9, 0.95))


def _write_result(job: Job, model: Any, dtype: "torch.dtype") -> None:
    aside = Path(job.folder) / f".{FINAL}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    if job.lora:
        _write_adapter(model, aside / ADAPTER, job.base_name)
        model = model.merge_and_unload(safe_merge=True)
    model.to(dtype).save_pretrained(aside / MERGED)
    aside.rename(job.final)


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


def _ignore(record: dict[str, Any]) -> None:
    """Report of the ranks that do not report."""


@contextmanager
def _alone(path: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the job's folder: a worker that outlives its killed driver for a moment must not write into it."""
    if ranks.rank:
        yield
        return
    with path.open("w") as lock:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"Another process still trains in {path.parent}: wait for it, or end it."
                    ) from error
                time.sleep(0.5)
        yield
