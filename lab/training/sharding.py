"""Weights, gradients and optimizer state split over processes (FSDP2, torch's `fully_shard`)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from lab.errors import LabError
from lab.training.collective import rank


class Sharded:
    """The model of a stage module, split. What the stage holds stays whole: a copy is what trains.

    Each block of the language model is gathered when it runs; all other weights are gathered together, once a
    step, because whether they run may differ between processes: one may have a batch without images.

    Args:
        module: has `model`, which is replaced by its split copy until `join`.
        mesh: the processes to split over.

    Raises:
        LabError: the model has a parameter that cannot be split.
    """

    def __init__(self, module: Any, mesh: DeviceMesh) -> None:
        self.module, self.whole = module, module.model
        for name, parameter in self.whole.named_parameters():
            if parameter.ndim == 0:
                raise LabError(f"strategy fsdp: {name} is a single number, which cannot be split; use ddp")
        module.model = deepcopy(self.whole)
        decoder = getattr(module.model, "text_decoder", module.model)
        blocks: list[nn.Module] = list(getattr(decoder, "layers", ()))
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        self._outside = [
            (child, name)
            for child in module.modules()
            for name, parameter in child.named_parameters(recurse=False)
            if parameter.requires_grad and id(parameter) not in inside
        ]
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)

    def reached(self, loss: Tensor) -> Tensor:
        """The loss, with a gradient of at least zero for every weight that the processes exchange at once.

        They exchange what has a gradient, and would wait for each other where that differs.
        """
        return _Reach.apply(loss, *(getattr(child, name) for child, name in self._outside))

    def join(self) -> None:
        """Puts the weights together, on rank 0 in the model as it was given, and that back in its place."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.module, options=options)
        if rank() == 0:
            self.whole.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        self.module.model = self.whole


class _Reach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], *(torch.zeros_like(parameter) for parameter in ctx.parameters)
