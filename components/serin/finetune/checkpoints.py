"""Checkpoints of a training job: whole or absent, without pickles, and refused when the job changed.

``<folder>/step-00000120/`` holds ``tensors.safetensors`` (trained weights, optimizer state, random state) and
``state.json`` (step, identity of the job, digest of the tensors).  It is written aside and renamed into place.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.digests import digest_of_file
from serin.core.errors import IntegrityError
from serin.core.storage import disk_errors

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

KEEP = 2
TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What training continues from."""

    step: int
    """Optimizer steps done, which is also the number of the next batch."""
    tensors: "dict[str, torch.Tensor]"


class Checkpoints:
    """The checkpoints of one job.

    Args:
        folder: where they are kept.
        identity: digest of everything that decides the job; a checkpoint of another one is refused.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self._identity = folder, identity

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint in one visible step and drop all but the newest two."""
        from safetensors.torch import save_file

        target = self.folder / f"step-{checkpoint.step:08d}"
        aside = self.folder / f".{target.name}.partial"
        with disk_errors(self.folder):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file(checkpoint.tensors, aside / TENSORS)
            state = {
                "step": checkpoint.step,
                "identity": self._identity,
                "tensors_sha256": digest_of_file(aside / TENSORS),
            }
            (aside / STATE).write_text(json.dumps(state), encoding="utf-8")
            for path in (aside / TENSORS, aside / STATE, aside):
                _sync(path)
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
        for old in self._folders()[KEEP:]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None.

        Raises:
            IntegrityError: it belongs to another job: other settings, other data or another base.
        """
        from safetensors.torch import load_file

        for folder in self._folders():
            state = _state(folder)
            if state is None:
                logger.warning("%s is damaged: an earlier checkpoint is used.", folder)
                continue
            if state["identity"] != self._identity:
                raise IntegrityError(
                    f"Checkpoint {folder} was made with other settings, other data or another base: "
                    "remove it to train anew, or restore what it was made with."
                )
            return Checkpoint(step=int(state["step"]), tensors=load_file(folder / TENSORS))
        return None

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint on disk, or None."""
        folders = self._folders()
        return int(folders[0].name.removeprefix("step-")) if folders else None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def optimizer_tensors(optimizer: "torch.optim.Optimizer") -> "dict[str, torch.Tensor]":
    """An optimizer's state as named tensors: ``optimizer.<parameter number>.<field>``."""
    states = optimizer.state_dict()["state"]
    return {f"optimizer.{number}.{name}": value for number, state in states.items() for name, value in state.items()}


def restore_optimizer(optimizer: "torch.optim.Optimizer", tensors: "dict[str, torch.Tensor]") -> None:
    """Put back what ``optimizer_tensors`` took."""
    states: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            states.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _state(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        whole = digest_of_file(folder / TENSORS) == state["tensors_sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return state if whole else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
