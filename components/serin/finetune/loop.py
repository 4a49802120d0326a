"""The training loop: plain PyTorch, with or without Ray around it.

A ``Job`` is plain values and paths, so that it can be written to a file and run by another process.  ``train`` runs it
from its last checkpoint to its end; the result is the same, bit for bit, however often it was killed in between.
"""

import fcntl
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.digests import digest_of
from serin.core.errors import InputError, StorageError, UnavailableError
from serin.core.storage import disk_errors
from serin.finetune.checkpoint_writer import CheckpointCopies, CheckpointWriter, newest_checkpoint
from serin.finetune.checkpoints import Checkpoint, Checkpoints
from serin.finetune.config import PhaseConfig
from serin.finetune.data import SampleFile, batches_from, epoch_batches
from serin.finetune.job import ADAPTER, FINAL, MERGED, PROGRESS, Job, LoraSpec
from serin.finetune.model import optimizer_of, trainee_of, weights_of, write_result
from serin.finetune.objectives import loss_function
from serin.finetune.ranks import Ranks
from serin.finetune.schedule import learning_rate, num_steps_of, passes_of
from serin.finetune.state import Course, restore, snapshot
from serin.finetune.usage import usage_of

if TYPE_CHECKING:
    import torch

__all__ = [
    "ADAPTER", "FINAL", "MERGED", "PROGRESS", "Job", "LoraSpec", "PhaseConfig", "Ranks", "Report",
    "learning_rate", "num_steps_of", "train",
]  # fmt: skip

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 120.0
NAMED_SAMPLES = 8
TINY_NORM = 1e-6  # as torch's clip_grad_norm_
Report = Callable[[dict[str, Any]], None]


def train(job: Job, ranks: Ranks | None = None, report: Report | None = None) -> Path:
    """Run a job from its last checkpoint to its end.

    Args:
        job: what to train.
        ranks: the processes that share each batch.
        report: called with every line of progress, besides ``progress.jsonl``.

    Returns:
        The folder of the result; a job that ended before returns it at once.

    Raises:
        InputError: the loss is no longer a number; names the batch and the last good checkpoint.
        IntegrityError: the checkpoint belongs to another job; names what differs.
        StorageError: no disk space, or the storage of the checkpoints refuses them.
        UnavailableError: another process trains in the same folder, or there is no such device.
    """
    ranks = ranks or Ranks()
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder), _alone(folder / "lock", ranks), (folder / PROGRESS).open("a", encoding="utf-8") as stream:
        if not ranks.first(job.final.exists):

            def line(record: dict[str, Any]) -> None:
                stream.write(json.dumps(record) + "\n")
                stream.flush()
                if report:
                    report(record)

            _Training(job, ranks, line if ranks.rank == 0 else _ignore).run()
    return job.final


class _Training:
    """The state of one job in one process."""

    def __init__(self, job: Job, ranks: Ranks, report: Report) -> None:
        import torch

        self.job, self.ranks, self.report = job, ranks, report
        torch.set_num_threads(job.threads)
        torch.manual_seed(job.seed)
        self.samples, self.validation = SampleFile(Path(job.train)), SampleFile(Path(job.validation))
        self.trainee = trainee_of(job, ranks)
        self.loss = loss_function(
            job.objective,
            self.trainee.model,
            precision=job.precision,
            device=self.trainee.device,
            is_split=self.trainee.is_split,
            packed=self.trainee.is_packed,
            cross_entropy="plain" if (job.cross_entropy, job.liger) == ("auto", "off") else job.cross_entropy,
            last=self.trainee.last,
        )
        self.optimizer = optimizer_of(job, self.trainee)
        self.num_steps = num_steps_of(self.samples.lengths, job.optim)
        self.course = Course()
        self.step = 0
        self.copies = CheckpointCopies(job.checkpoint_uri) if job.checkpoint_uri else None
        self.checkpoints = Checkpoints(Path(job.folder) / "checkpoints", job.identity_parts())
        self.writer = CheckpointWriter(self.checkpoints, self.copies)
        self.unconfirmed: Any = None  # the newest snapshot: good once the next loss is a number
        self.saved = time.monotonic()
        torch.manual_seed(job.seed + ranks.rank)

    def run(self) -> None:
        try:
            self._resume()
            if self.step == 0:
                self._report(val_loss=self._validate())
            batches = batches_from(self.samples.lengths, self.job.optim.tokens_per_batch, self.job.seed, self.step)
            while self.step < self.num_steps and not self._is_stopped():
                self._advance(next(batches))
            self._finish()
        finally:
            self.writer.close()

    def _advance(self, indices: Sequence[int]) -> None:
        started = time.monotonic()
        rate = learning_rate(self.step, self.num_steps, self.job.optim)
        loss, norm, is_due = self._update(indices, rate)
        self.step += 1
        record: dict[str, Any] = {
            "loss": loss,
            "lr": rate,
            "grad_norm": norm,
            "tokens": sum(self.samples.lengths[index] for index in indices),
            "batch": digest_of(list(indices))[:12],
            "seconds": time.monotonic() - started,
            **usage_of(self.trainee.device, self.ranks.size),
        }
        if self.step % self.job.validation_interval == 0 or self.step == self.num_steps:
            record["val_loss"] = self._validate()
        self._report(**record)
        if is_due and self.step < self.num_steps:
            self.unconfirmed = snapshot(self.step, self.trainee, self.optimizer, self.course, self.ranks)
            self.saved = time.monotonic()

    def _update(self, indices: Sequence[int], rate: float) -> tuple[float, float, bool]:
        """One optimizer step.

        Returns:
            Loss per counted token (or pair) and norm of its gradient, both before the step, and whether rank 0 wants
            a checkpoint after it.
        """
        import torch

        sums = self._passes(self.samples, indices, learns=True)
        total = torch.cat([sums, sums.new_tensor(self._wishes())])
        gradients = self._gradients()
        self.ranks.sum([total, *([] if self.trainee.is_sharded else gradients)])
        loss_sum, count, is_due, has_failed = total.tolist()
        self._raise_failure(bool(has_failed))
        divisor = max(count, 1.0)
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        size = float(norm.full_tensor() if self.trainee.is_sharded else norm) / divisor
        mean = loss_sum / divisor
        if not math.isfinite(mean) or not math.isfinite(size):
            raise InputError(self._diverged(mean, indices))
        self._confirm()
        # To a mean and to the greatest norm at once: each pass over the gradients of all weights costs time.
        torch._foreach_mul_(gradients, min(1.0, self.job.optim.max_grad_norm / (size + TINY_NORM)) / divisor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean, size, bool(is_due)

    def _gradients(self) -> "list[torch.Tensor]":
        import torch

        gradients = []
        for weight in self.trainee.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
        return gradients

    def _passes(self, samples: SampleFile, indices: Sequence[int], learns: bool) -> "torch.Tensor":
        """Sum of the loss over this rank's share of a batch and the number that it is a sum over: (2,)."""
        import torch

        limit, is_packed = self.job.micro_batch_tokens, self.trainee.is_packed
        every = passes_of(indices, samples.lengths, self.ranks.size, limit, is_packed)
        mine = every[self.ranks.rank]
        if self.trainee.is_sharded:  # the ranks gather their shards together: each makes as many passes as the others
            mine = [*mine, *[[]] * (max(map(len, every)) - len(mine))]
        total = torch.zeros(2, device=self.trainee.device)
        for rows in mine:
            loss, count = self.trainee.call(partial(self.loss, samples, rows or indices[:1]))
            if not rows:
                loss, count = loss * 0, count * 0
            if learns and loss.requires_grad:
                loss.backward()
            total += torch.stack([loss.detach(), count])
        return total

    def _validate(self) -> float | None:
        """Loss per counted token or pair over the first validation samples; None when there are none."""
        import torch

        lengths = self.validation.lengths[: self.job.validation_samples]
        total = torch.zeros(2, device=self.trainee.device)
        self.trainee.model.eval()
        with torch.no_grad():
            for indices in epoch_batches(lengths, self.job.optim.tokens_per_batch, seed=0, epoch=0):
                total += self._passes(self.validation, indices, learns=False)
        self.trainee.model.train()
        self.trainee.reshard()
        self.ranks.sum([total])
        if not total[1]:
            return None
        loss = float(total[0] / total[1])
        if not math.isfinite(loss):
            raise InputError(self._diverged(loss))
        if self.course.note(loss, self.step) and self.job.early_stopping_patience is not None:
            self.course.best_weights = weights_of(self.trainee, self.ranks)
        return loss

    def _is_stopped(self) -> bool:
        patience = self.job.early_stopping_patience
        return patience is not None and self.course.num_without_gain >= patience

    def _finish(self) -> None:
        """Write the result: the best weights with early stopping, else the last."""
        self.ranks.first(self.writer.wait)
        if self.job.early_stopping_patience is not None and self.course.best_loss is not None:
            trained = self.course.best_weights
            best = {"best_step": self.course.best_step, "best_val_loss": self.course.best_loss}
            self._report(stopped_early=self.step < self.num_steps, **best)
        else:
            trained = weights_of(self.trainee, self.ranks)
        if self.ranks.rank == 0:
            write_result(self.job, self.trainee, trained)

    def _resume(self) -> None:
        loaded: list[Checkpoint] = []

        def load() -> tuple[int, dict[str, Any]] | None:
            if (newest := newest_checkpoint(self.checkpoints, self.copies)) is None:
                return None
            loaded.append(newest)
            return newest.step, newest.course

        if (found := self.ranks.first(load)) is None:
            return
        checkpoint = loaded[0] if loaded else Checkpoint(found[0], {}, found[1])
        restore(checkpoint, self.trainee, self.optimizer, self.course, self.ranks)
        self.step = checkpoint.step
        logger.info("%s goes on from step %d of %d.", self.job.phase, self.step, self.num_steps)
        self._report(resumed=True)

    def _wishes(self) -> list[float]:
        """Rank 0's: whether a checkpoint is due, and whether writing one failed; the others have none."""
        if self.ranks.rank:
            return [0.0, 0.0]
        interval = self.job.checkpoint_interval_s
        is_time = time.monotonic() - self.saved >= interval
        return [float(is_time and not (interval and self.writer.is_busy)), float(self.writer.failure() is not None)]

    def _raise_failure(self, has_failed: bool) -> None:
        if has_failed:
            self.writer.wait()
            raise StorageError("Rank 0 could not write a checkpoint: its log says why.")

    def _confirm(self) -> None:
        """Write the newest snapshot, now that the loss of its weights is known to be a number."""
        if self.unconfirmed is not None and self.ranks.rank == 0:
            self.writer.submit(self.unconfirmed)
        self.unconfirmed = None

    def _report(self, **values: Any) -> None:
        self.report({"phase": self.job.phase, "step": self.step, "steps": self.num_steps, **values})

    def _diverged(self, loss: float, indices: Sequence[int] = ()) -> str:
        self.writer.close()
        newest = self.checkpoints.newest_step()
        kept = "no checkpoint was written yet" if newest is None else f"the checkpoint of step {newest} is kept"
        where = f"at step {self.step + 1} of {self.num_steps} of {self.job.phase}, in {self._batch(indices)}"
        if not indices:
            where = f"in the validation after step {self.step} of {self.num_steps} of {self.job.phase}"
        what = f"Loss is {loss}" if not math.isfinite(loss) else "The gradient is not a number"
        remedy = f"lower its learning_rate ({self.job.optim.learning_rate:g})"
        if self.job.precision != "fp32":
            remedy += " or use precision fp32"
        return f"{what} {where}: {remedy}; {kept}."

    def _batch(self, indices: Sequence[int]) -> str:
        """The batch by number, and which samples of it give no number by themselves; all of them when none does so."""
        import torch

        with torch.no_grad():  # every rank looks at every sample: a sharded model needs them all
            alone = {index: self.trainee.call(partial(self.loss, self.samples, [index]))[0] for index in indices}
        found = [index for index, loss in alone.items() if not torch.isfinite(loss)] or list(indices)
        more = f" and {len(found) - NAMED_SAMPLES} more" if len(found) > NAMED_SAMPLES else ""
        return f"batch {self.step + 1} (samples {', '.join(map(str, found[:NAMED_SAMPLES]))}{more})"


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
