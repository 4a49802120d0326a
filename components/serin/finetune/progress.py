"""Progress of the stage: passes on what the training reports, and repeats itself while there is nothing new."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serin.core.tracking import Tracker

REPEAT_S = 1.5
METRICS_INTERVAL_S = 2.0
MIB = 2**20
PEAK_FLOPS = {
    # Dense bfloat16 tensor operations a second of one device, from NVIDIA's data sheets of each (where a sheet gives
    # the figure "with sparsity", half of it).  V100 and T4 have no bfloat16: their float16.
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIE": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device: str) -> float:
    """Peak operations a second of a GPU by its name, as ``torch.cuda.get_device_name`` gives it; 0 when unknown."""
    words = device.upper().replace("-", " ").split()
    for name, peak in PEAK_FLOPS.items():
        if all(part in words for part in name.split()):
            return peak
    return 0.0


def flops_per_token(num_parameters: int, num_trained: int, num_layers: int, hidden_size: int, length: float) -> float:
    """Floating point operations of a training step, per token.

    Two for each weight forward, two backward for the activations' gradients, two more for each trained weight's own
    gradient (6 N where all are trained), and 12 * layers * width * length for attention's scores and sums, forward
    and backward: appendix B of PaLM (Chowdhery and others, 2022), which does not halve them for causal attention.

    Args:
        num_parameters: weights that a token meets, the input embedding left out.
        num_trained: those of them that are trained.
        num_layers: transformer blocks.
        hidden_size: heads times their width.
        length: mean sample length, tokens.
    """
    return 4.0 * num_parameters + 2.0 * num_trained + 12.0 * num_layers * hidden_size * length


def model_flops_per_token(folder: Path, num_parameters: int, *, trains_all: bool, length: float) -> float:
    """``flops_per_token`` of the model in a Hugging Face folder; 0 where its config does not tell its shape.

    Args:
        folder: with ``config.json``.
        num_parameters: all of them.
        trains_all: whether all are trained; adapters are too small to count.
        length: mean sample length, tokens.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers, width, vocabulary = (config.get(name) for name in ("num_hidden_layers", "hidden_size", "vocab_size"))
    if not (layers and width and vocabulary):
        return 0.0
    met = num_parameters - (0 if config.get("tie_word_embeddings") else vocabulary * width)
    return flops_per_token(met, met if trains_all else 0, layers, width, length)


class Heartbeat:
    """Says something at least every two seconds, so that a stage that works is told from one that hangs.

    Args:
        progress: called with a message and the fraction of the stage that is done.
    """

    def __init__(self, progress: Callable[[str, float | None], None]) -> None:
        self._progress = progress
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._message, self._fraction, self._since, self._last = "starting", 0.0, time.monotonic(), 0.0
        self._thread = threading.Thread(target=self._repeat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def say(self, message: str, fraction: float) -> None:
        """What goes on from now, and how much of the stage is done (0 to 1)."""
        with self._lock:
            self._message, self._fraction, self._since = message, round(fraction, 4), time.monotonic()
            self._say(message)

    def _repeat(self) -> None:
        while not self._ended.wait(REPEAT_S / 3):
            with self._lock:
                if time.monotonic() - self._last >= REPEAT_S:
                    self._say(f"{self._message} ({time.monotonic() - self._since:.0f} s)")

    def _say(self, message: str) -> None:
        self._last = time.monotonic()
        self._progress(message, self._fraction)


class PhaseReport:
    """Turns the loop's records into progress and metrics.

    Args:
        heartbeat: where progress goes.
        tracker: where metrics go.
        name: prefix of the metrics' names.
        share: the part of the stage that this phase is, as (start, end) fractions.
        flops_per_token: floating point operations of a step per token; 0 where unknown, and then there is no MFU.
        peak: what the devices could do in a second, all together; 0 asks the records for their ``device`` and
            ``num_devices``, and then there is no MFU on CPUs.
        interval_s: seconds between metrics; the first and the last step and validations are always logged.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        tracker: Tracker,
        name: str,
        share: tuple[float, float],
        *,
        flops_per_token: float = 0.0,
        peak: float = 0.0,
        interval_s: float = METRICS_INTERVAL_S,
    ) -> None:
        self._heartbeat, self._tracker, self._name, self._share = heartbeat, tracker, name, share
        self._flops_per_token, self._peak, self._interval_s = flops_per_token, peak, interval_s
        self._tracked = self._said = float("-inf")
        self._tokens, self._seconds = 0, 0.0
        self._all_tokens = 0

    def __call__(self, record: dict[str, Any]) -> None:
        """Take one line of the loop's progress."""
        self._tokens += record.get("tokens", 0)
        self._all_tokens += record.get("tokens", 0)
        self._seconds += record.get("seconds", 0.0)
        now, last = time.monotonic(), record["step"] == record["steps"]
        if now - self._said >= REPEAT_S / 3 or last:
            self._said = now
            start, end = self._share
            done = record["step"] / record["steps"]
            self._heartbeat.say(_sentence(record), start + (end - start) * done)
        if now - self._tracked >= self._interval_s or last or _is_milestone(record):
            self._tracked = now
            self._tracker.metrics(self._metrics(record), step=record["step"])

    def _metrics(self, record: dict[str, Any]) -> dict[str, float]:
        """The record's own numbers, and the speed since the last time."""
        names = ("loss", "val_loss", "best_val_loss", "best_step", "lr", "grad_norm")
        known = {name: record[name] for name in names if record.get(name) is not None}
        for name in ("memory", "cuda_memory"):
            if record.get(f"{name}_bytes"):
                known[f"{name}_mib"] = record[f"{name}_bytes"] / MIB
        if self._all_tokens:
            known["tokens"] = self._all_tokens
        if self._seconds:
            known["tokens_per_s"] = self._tokens / self._seconds
            peak = self._peak or peak_flops(record.get("device") or "") * record.get("num_devices", 1)
            if self._flops_per_token and peak:
                known["mfu"] = known["tokens_per_s"] * self._flops_per_token / peak
        self._tokens, self._seconds = 0, 0.0
        return {f"{self._name}.{name}": value for name, value in known.items()}


def _is_milestone(record: dict[str, Any]) -> bool:
    return record.get("val_loss") is not None or record.get("best_val_loss") is not None


def _sentence(record: dict[str, Any]) -> str:
    loss = f", loss {record['loss']:.3f}" if record.get("loss") is not None else ""
    return f"{record['phase']} {record['step']}/{record['steps']}{loss}"
