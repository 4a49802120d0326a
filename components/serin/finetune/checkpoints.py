"""Checkpoints of a training job: whole or absent, without pickles, and refused when the job changed.

``<folder>/step-00000120/`` holds ``tensors.safetensors`` (trained weights, optimizer state, random state of every
rank) and ``state.json`` (step, course of the validation, parts of the job's identity, digest of the tensors).  It is
written aside and renamed into place.  The batch to go on with and the learning rate follow from the step.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
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
NAMED_DIFFERENCES, SHOWN_CHARS = 4, 16


@dataclass(frozen=True)
class Checkpoint:
    """What training continues from."""

    step: int
    """Optimizer steps done, which is also the number of the next batch."""
    tensors: "dict[str, torch.Tensor]"
    """On the host; nobody writes into them any more."""
    course: dict[str, Any] = field(default_factory=dict)
    """What the loop remembers besides, as JSON values."""


class Checkpoints:
    """The checkpoints of one job.

    Args:
        folder: where they are kept.
        identity: everything that decides the job, by name; a checkpoint of another one is refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self._identity = folder, dict(identity)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint in one visible step and drop all but the newest two."""
        from safetensors.torch import save_file

        target = self.folder / folder_name(checkpoint.step)
        aside = self.folder / f".{target.name}.partial"
        with disk_errors(self.folder):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file(checkpoint.tensors, aside / TENSORS)
            state = {
                "step": checkpoint.step,
                "course": checkpoint.course,
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
            IntegrityError: it belongs to another job; names what differs.
        """
        from safetensors.torch import load_file

        for folder in self._folders():
            state = whole_state(folder)
            if state is None:
                logger.warning("%s is damaged: an earlier checkpoint is used.", folder)
                continue
            if changes := differences(state["identity"], self._identity):
                raise IntegrityError(
                    f"Checkpoint {folder} was made with other code, settings, data or base ({changes}): "
                    "remove it to train anew, or restore what it was made with."
                )
            return Checkpoint(int(state["step"]), load_file(folder / TENSORS), state["course"])
        return None

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint on disk, or None."""
        folders = self._folders()
        return int(folders[0].name.removeprefix("step-")) if folders else None

    def newest_whole_step(self) -> int | None:
        """Step of the newest checkpoint that can be loaded, or None."""
        return next((int(state["step"]) for folder in self._folders() if (state := whole_state(folder))), None)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def folder_name(step: int) -> str:
    """The folder of a step's checkpoint, whose names sort by step."""
    return f"step-{step:08d}"


def differences(made_with: Any, now: Mapping[str, Any]) -> str:
    """What differs between two identities, in words; empty when nothing does."""
    if not isinstance(made_with, Mapping):
        return "its format is older"
    names = sorted(name for name in {*made_with, *now} if made_with.get(name) != now.get(name))
    shown = [f"{name} was {_short(made_with.get(name))}, is {_short(now.get(name))}" for name in names]
    more = len(shown) - NAMED_DIFFERENCES
    return "; ".join(shown[:NAMED_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def optimizer_tensors(optimizer: "torch.optim.Optimizer", names: Mapping[int, str]) -> "dict[str, torch.Tensor]":
    """An optimizer's state as named tensors: ``optimizer.<field>.<parameter's name>``.

    Args:
        optimizer: after a step, or before the first, when it has none.
        names: name of each parameter by its ``id``.
    """
    return {
        f"optimizer.{key}.{names[id(weight)]}": value
        for weight, state in optimizer.state.items()
        for key, value in state.items()
    }


def whole_state(folder: Path) -> dict[str, Any] | None:
    """A checkpoint's ``state.json``, or None when it or its tensors are damaged."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        whole = digest_of_file(folder / TENSORS) == state["tensors_sha256"] and "identity" in state
    except (OSError, ValueError, KeyError):
        return None
    return {"course": {}, **state} if whole else None


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 4]}..."


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
