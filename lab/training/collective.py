"""What the processes of a run say to each other while they train; with one process, nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Processes that are connected now; 1 before and after training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Of this process among those connected now."""
    return dist.get_rank() if world() > 1 else 0


def summed(values: Sequence[float]) -> list[float]:
    """Sums over all processes. They meet on the CPU, so that no device is waited for."""
    if world() == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers, group=_on_cpu())
    return numbers.tolist()


def collected(value: Any) -> list[Any]:
    """What every process has, in the order of their ranks."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value, group=_on_cpu())
    return found


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Mean of a tensor over all processes, without gradient."""
    if world() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world()


def all_rows(part: Tensor) -> Tensor:
    """All rows (B, ...) of a batch, of which this process has every world-th, (B / world, ...).

    A gradient flows back to the process whose row it is, summed over all processes that used the row.
    """
    return part if world() == 1 else _AllRows.apply(part)


def disconnect() -> None:
    """Ends the connection, so that the process of rank 0 can go on alone."""
    if dist.is_available() and dist.is_initialized():
        if world() > 1:
            dist.barrier(group=_on_cpu())
        _groups.clear()
        dist.destroy_process_group()


_groups: list[Any] = []


def _on_cpu() -> Any:
    """The group of all processes whose messages stay on the CPU; None is the default one."""
    if not _groups:
        _groups.append(None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo"))
    return _groups[0]


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(world())]
        dist.all_gather(parts, part.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total[rank() :: world()]
