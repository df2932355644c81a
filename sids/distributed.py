"""A step of pre-training shared out over processes, so that it is the step of one process.

All processes hold the same batch. Each passes its share of the rows through a network; what comes out is gathered with
its gradient, so that each sees every row, quantizes every row and counts every code alike. What a process computes of
its own rows alone, it counts as often as there are processes: the gradients are averaged.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from utils import Problem

T = TypeVar("T")


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def own(rows: int) -> slice:
    """This process's share of so many rows; the last ones may have fewer or none."""
    size = -(-rows // processes())
    return slice(min(rank() * size, rows), min((rank() + 1) * size, rows))


def spread(network: Callable[[Tensor], Tensor], x_BD: Tensor) -> Tensor:
    """network(x) for a network that treats each row alone, every process doing its share of the rows.

    Shares are filled up to one size.
    """
    if processes() == 1:
        return network(x_BD)
    size = -(-len(x_BD) // processes())
    mine = torch.arange(rank() * size, (rank() + 1) * size, device=x_BD.device) % len(x_BD)
    found: Tensor = _Gather.apply(network(x_BD[mine]))
    return found[: len(x_BD)]


class _Gather(Function):
    """The rows of all processes, one after the other; backwards, what all make of this one's."""

    @staticmethod
    def forward(ctx: Any, part_RD: Tensor) -> Tensor:
        parts = [torch.empty_like(part_RD) for _ in range(processes())]
        dist.all_gather(parts, part_RD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_BD: Tensor) -> Tensor:
        grad_BD = grad_BD.contiguous()
        dist.all_reduce(grad_BD)
        return grad_BD.chunk(processes())[rank()]


def average(tensors: list[Tensor]) -> None:
    """Put the mean over the processes in the place of each tensor."""
    if processes() == 1 or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor) / processes())


def average_gradients(model: nn.Module) -> None:
    average([p.grad for p in model.parameters() if p.grad is not None])


def agree(model: nn.Module) -> None:
    """Give all processes the first one's state."""
    if processes() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def of_first(make: Callable[[], T]) -> T:
    """What the first process makes, on all; a Problem of it ends all, and it alone says so."""
    if processes() == 1:
        return make()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = make()
        except Problem as e:
            found[1] = str(e)
    dist.broadcast_object_list(found)
    if found[1] is None:
        return cast(T, found[0])
    if rank() == 0:
        raise Problem(found[1])
    raise SystemExit(2)


def share(rows: np.ndarray) -> np.ndarray:
    """This process's part of some rows, for `joined`."""
    return np.array_split(rows, processes())[rank()]


def joined(part: np.ndarray) -> np.ndarray:
    """The parts of all processes, one after the other, on all of them."""
    if processes() == 1:
        return part
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, part)
    return np.concatenate(found)


def largest(number: int) -> int:
    """The largest of the numbers that the processes have."""
    if processes() == 1:
        return number
    found = [0] * processes()
    dist.all_gather_object(found, number)
    return max(found)
