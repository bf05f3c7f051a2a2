"""Floating-point operations of a training step, counted on a real batch, without a trace in the run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from lab.training.checkpointing import kept
from lab.training.randomness import random_states, set_random_states


def flops_of(module: nn.Module, batch: Any, precision: AbstractContextManager[Any]) -> float:
    """Operations of one forward and one backward pass; a multiplication with its addition counts as two.

    What torch's counter knows is counted: products of matrices, convolutions, attention. The optimizer,
    activations that are computed twice to save memory, and element-wise operations are not. The pass runs in
    eval mode, in which parts keep no running state; random states, gradients and modes are as before after
    it, except that gradients are gone, as they are at the start of a step anyhow.

    Args:
        module: gives the loss of a batch.
        batch: on the module's device.
        precision: Lightning's context of the forward pass.
    """
    states = random_states()
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        counter = FlopCounterMode(display=False, custom_mapping=_ON_CPU)
        # compiled code hides its operations, and a second run of a block is no work of the model
        with counter, torch.enable_grad(), kept(), torch.compiler.set_stance("force_eager"):
            with precision:
                loss = module(batch)
            loss.backward()
    finally:
        module.zero_grad(set_to_none=True)
        for child, training in modes.items():
            child.training = training
        set_random_states(states)
    return float(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


_ON_CPU = {  # torch has formulas, but none for the kernels of attention on CPUs; they get shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
