"""The processes that share each batch: one, or a group joined by torch.distributed."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from serin.core.errors import SerinError

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
BUCKET_NUMBERS = 25_000_000
"""Most numbers in one reduction of several tensors: 100 MB of fp32 beside the gradients, and not a second copy."""


class Ranks:
    """The processes that share each batch: here, one."""

    rank = 0
    size = 1
    device: str | None = None
    """The device that this process was given; None: the first of its kind."""

    def sum(self, tensors: "Sequence[torch.Tensor]") -> None:
        """Replace each tensor by its sum over all ranks."""

    def gather(self, tensor: "torch.Tensor") -> "list[torch.Tensor]":
        """The same tensor of every rank, in their order."""
        return [tensor]

    def broadcast(self, tensor: "torch.Tensor") -> None:
        """Replace a tensor by rank 0's."""

    def agree(self, value: Any) -> Any:
        """Rank 0's plain value."""
        return value

    def first(self, action: Callable[[], Value]) -> Value:
        """What an action of rank 0 alone returned or raised, on every rank."""
        value = error = None
        if self.rank == 0:
            try:
                value = action()
            except SerinError as raised:
                error = raised
        value, error = self.agree((value, error))
        if error is not None:
            raise error
        return value


class DistributedRanks(Ranks):
    """The workers of one group, joined by torch.distributed."""

    def __init__(self, rank: int, size: int, device: str | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device

    def sum(self, tensors: "Sequence[torch.Tensor]") -> None:
        import torch
        from torch import distributed

        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            distributed.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, tensor: "torch.Tensor") -> "list[torch.Tensor]":
        import torch
        from torch import distributed

        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(tensors, tensor)
        return tensors

    def broadcast(self, tensor: "torch.Tensor") -> None:
        from torch import distributed

        distributed.broadcast(tensor, src=0)

    def agree(self, value: Any) -> Any:
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]


def _buckets(tensors: "Sequence[torch.Tensor]") -> "list[list[torch.Tensor]]":
    """The tensors in their order, in groups of one type and of a bounded size."""
    buckets: list[list[torch.Tensor]] = []
    numbers = 0
    for tensor in tensors:
        fits = buckets and numbers + tensor.numel() <= BUCKET_NUMBERS and buckets[-1][0].dtype == tensor.dtype
        if fits:
            buckets[-1].append(tensor)
        else:
            buckets.append([tensor])
            numbers = 0
        numbers += tensor.numel()
    return buckets
