"""Adaption prompts in the attention of the last blocks, with the image added to them, behind gates at zero.

Paper: LLaMA-Adapter V2, arXiv:2304.15010, section 3; zero-initialised attention: LLaMA-Adapter,
arXiv:2303.16199, section 3.2
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.layers.reading import Reading, chosen

__all__ = ["Prefix"]

FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "gemma")  # one form of attention and of rotary positions


class Prefix(Reading):
    """Keys and values beside those of the text: M learned prompts a block, through the block's projections.

    Text and prompts have a softmax each, and the prompts' part is added times the tanh of a gate per head
    that starts at 0, so that at first the language model is unchanged. Prompts have no positions. In blocks
    that read images, the tokens of a position's last image are added to its prompts; before the first image
    the prompts stand alone.

    Args:
        dim: width of the language model, D, and so of the tokens.
        num_layers: its blocks.
        num_tokens: tokens of an image, M, and so prompts of a block.
        prompted_layers: the last how many blocks have prompts; all but the first if left out.
        visual_layers: the first how many of these read images. All of them if left out, as the released code
            has it; fewer are the paper's early fusion, which leaves late prompts to the text.
        num_heads: attention heads of the language model.

    Shapes: tokens (B, I, M, D), image (B, T) -> what a block's attention gives before its output projection.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_tokens: int,
        *,
        prompted_layers: int | None = None,
        visual_layers: int | None = None,
        num_heads: int = 4,
    ) -> None:
        prompted = max(num_layers - 1, 1) if prompted_layers is None else prompted_layers
        visual = prompted if visual_layers is None else visual_layers
        if not 1 <= prompted <= num_layers:
            raise ValueError(f"prompted_layers {prompted} is not between 1 and the {num_layers} blocks")
        if not 1 <= visual <= prompted:
            raise ValueError(f"visual_layers {visual} is not between 1 and the {prompted} prompted blocks")
        super().__init__(num_layers, dim)
        self.num_heads = num_heads
        # two lists, so that a recipe can train those that read images and those that do not on different data
        self.visual = nn.ModuleList(_Prompts(num_tokens, dim, num_heads, True) for _ in range(visual))
        self.static = nn.ModuleList(
            _Prompts(num_tokens, dim, num_heads, False) for _ in range(prompted - visual)
        )

    def attach(self, layers: Sequence[nn.Module]) -> None:
        """Add the prompts to the attention of the last blocks.

        Raises:
            ValueError: another number of blocks or heads than this part was built for, or blocks of a family
                whose attention it does not know.
        """
        self.check_layers(layers)
        prompts = [*self.visual, *self.static]
        attentions = [_attention(layer) for layer in layers[-len(prompts) :]]
        heads = attentions[0].config.num_attention_heads
        if heads != self.num_heads:
            raise ValueError(f"num_heads {self.num_heads}, but the language model has {heads}")
        for attention, own in zip(attentions, prompts, strict=True):
            attention.register_forward_pre_hook(partial(self._before, own), with_kwargs=True)
            attention.o_proj.register_forward_pre_hook(own.add)

    def _before(self, own: _Prompts, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = kwargs["hidden_states"]
        run = self.read(states)
        own.extra = None if run is None else own(attention, states, kwargs["position_embeddings"], *run)


class _Prompts(nn.Module):
    """The prompts of one block, and what the positions of the run at hand read from them."""

    def __init__(self, num_tokens: int, dim: int, num_heads: int, visual: bool) -> None:
        super().__init__()
        self.visual = visual
        self.prompt = nn.Parameter(torch.randn(num_tokens, dim))  # as large as the normalised hidden states
        self.gate = nn.Parameter(torch.zeros(num_heads))
        self.extra: Tensor | None = None

    def forward(
        self, attention: Any, states: Tensor, rotary: tuple[Tensor, Tensor], tokens: Tensor, image: Tensor
    ) -> Tensor:
        """Let a block's normalised hidden states (B, T, D) read its prompts: (B, T, heads * head_dim)."""
        width = attention.head_dim
        query = attention.q_proj(states).unflatten(2, (-1, width)).transpose(1, 2)  # (B, heads, T, head_dim)
        cos, sin = (part.unsqueeze(1) for part in rotary)  # (B, T, head_dim) -> (B, 1, T, head_dim)
        first, second = query.chunk(2, dim=-1)
        query = query * cos + torch.cat([-second, first], dim=-1) * sin
        prompts, seen = self.prompt.expand(len(states), -1, -1), None  # (B, M, D)
        if self.visual:
            alone = prompts.unsqueeze(1)  # (B, 1, M, D)
            seen = chosen(image + 1, tokens.shape[1] + 1)  # (B, T, I + 1), the first for no image
            seen = seen.repeat_interleave(len(self.prompt), dim=2).unsqueeze(1)  # (B, 1, T, (I + 1) * M)
            prompts = torch.cat([alone, alone + tokens], dim=1).flatten(1, 2)  # (B, (I + 1) * M, D)
        key, value = (
            project(prompts).unflatten(2, (-1, width)).transpose(1, 2)  # (B, key heads, K, head_dim)
            for project in (attention.k_proj, attention.v_proj)
        )
        shared = query.shape[1] // key.shape[1]  # heads of queries to one of keys
        mixed = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(shared, dim=1),
            value.repeat_interleave(shared, dim=1),
            seen,
            scale=attention.scaling,
        )
        return (self.gate.tanh().view(-1, 1, 1) * mixed).transpose(1, 2).flatten(2)

    def add(self, projection: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Put what was read beside what the attention gives its output projection."""
        extra, self.extra = self.extra, None
        return None if extra is None else (args[0] + extra, *args[1:])


def _attention(block: nn.Module) -> Any:
    attention = getattr(block, "self_attn", None)
    family = getattr(getattr(attention, "config", None), "model_type", type(block).__name__)
    if attention is None or family not in FAMILIES:
        raise ValueError(f"prompts need blocks of one of {', '.join(FAMILIES)}, not of {family}")
    return attention
