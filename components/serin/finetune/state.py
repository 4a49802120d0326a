"""What a checkpoint holds of a running job: taken as a snapshot on the host, and put back on any number of ranks."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serin.finetune.checkpoints import Checkpoint, optimizer_tensors
from serin.finetune.model import Trainee, like, weights_of, whole
from serin.finetune.ranks import Ranks

if TYPE_CHECKING:
    import torch


@dataclass
class Course:
    """How the validation went."""

    best_loss: float | None = None
    best_step: int = 0
    num_without_gain: int = 0
    """Validations since the best one."""
    best_weights: "dict[str, torch.Tensor]" = field(default_factory=dict)
    """The trained weights of the best step, on rank 0's host; empty when they are not wanted."""

    def note(self, loss: float, step: int) -> bool:
        """Take a validation's loss; whether it is the best so far."""
        is_best = self.best_loss is None or loss < self.best_loss
        if is_best:
            self.best_loss, self.best_step, self.num_without_gain = loss, step, 0
        else:
            self.num_without_gain += 1
        return is_best

    def values(self) -> dict[str, Any]:
        """All but the weights, as JSON values."""
        return {"best_loss": self.best_loss, "best_step": self.best_step, "num_without_gain": self.num_without_gain}


def snapshot(
    step: int, trainee: Trainee, optimizer: "torch.optim.Optimizer", course: Course, ranks: Ranks
) -> Checkpoint | None:
    """A copy of everything on rank 0's host; None on the others, which must call it too."""
    states = ranks.gather(_random_state(trainee))
    live = optimizer_tensors(optimizer, trainee.names)
    if ranks.rank and not trainee.is_sharded:
        return None
    weights = weights_of(trainee, ranks)
    moments = {name: whole(tensor) for name, tensor in live.items()}
    if ranks.rank:
        return None
    tensors = {f"weight.{name}": weight for name, weight in weights.items()} | moments
    tensors |= {f"best.{name}": weight for name, weight in course.best_weights.items()}
    tensors |= {f"rng.{rank}": state.clone() for rank, state in enumerate(states)}
    return Checkpoint(step, tensors, course.values())


def restore(
    checkpoint: Checkpoint,
    trainee: Trainee,
    optimizer: "torch.optim.Optimizer",
    course: Course,
    ranks: Ranks,
) -> None:
    """Put a checkpoint back.

    Args:
        checkpoint: rank 0's has the tensors; those of the other ranks are ignored.
        trainee: gets the weights.
        optimizer: gets its state.
        course: gets the course of the validation.
        ranks: may be more or fewer than there were.
    """
    import torch

    for name, value in checkpoint.course.items():
        setattr(course, name, value)
    with torch.no_grad():
        for name, shape, dtype in ranks.agree([(n, t.shape, t.dtype) for n, t in checkpoint.tensors.items()]):
            kind, _, rest = name.partition(".")
            if kind == "best":
                if ranks.rank == 0:
                    course.best_weights[rest] = checkpoint.tensors[name]
                continue
            tensor = checkpoint.tensors[name] if ranks.rank == 0 else torch.empty(shape, dtype=dtype)
            ranks.broadcast(tensor)
            if kind == "weight":
                trainee.weights[rest].copy_(like(tensor, trainee.weights[rest]))
            elif kind == "optimizer":
                key, _, weight = rest.partition(".")
                optimizer.state[trainee.weights[weight]][key] = _moment(tensor, trainee.weights[weight])
            elif int(rest) == ranks.rank:
                _set_random_state(trainee, tensor)


def _moment(tensor: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
    """A part of the optimizer's state where it belongs: beside its weight, except step counters on CPU."""
    return like(tensor, weight) if tensor.shape == weight.shape else tensor.to(weight.device)


def _random_state(trainee: Trainee) -> "torch.Tensor":
    """The host's random state, followed by the GPU's when there is one: bytes."""
    import torch

    state = torch.get_rng_state()
    if trainee.device.type == "cuda":
        state = torch.cat([state, torch.cuda.get_rng_state(trainee.device)])
    return state


def _set_random_state(trainee: Trainee, state: "torch.Tensor") -> None:
    import torch

    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size])
    if trainee.device.type == "cuda" and state.numel() > size:
        torch.cuda.set_rng_state(state[size:], trainee.device)
