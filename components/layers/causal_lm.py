"""A causal language model of transformers as a text decoder, with adapters and in four bits if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.contracts import Seen
from components.layers import nf4
from components.layers.sparing import only_at

__all__ = ["CausalLM"]

_ADAPTERS = (".lora_", ".adapter.")  # in names of parameters


class CausalLM(nn.Module):
    """A causal language model that is fed embeddings and gives hidden states.

    With LoRA (arXiv:2106.09685) or bottleneck adapters (arXiv:1902.00751) every base weight stays trainable
    here: which parameters train is the recipe's decision, and `adapter_parameters` tells it which ones are
    the adapters. A state dict written without adapters loads into a model with them; the adapters then keep
    their values.

    Quantised (QLoRA, arXiv:2305.14314), the linear layers of the blocks hold numbers of four bits, in blocks
    of 64 without double quantisation. State dicts hold them as plain numbers: one that is written with any
    setting of `quantise` loads with any other, rounded as that setting says.

    Args:
        model: a causal language model of transformers.
        lora_rank: rank of the LoRA adapters; 0 for none.
        lora_alpha: scale of the adapters, which add `lora_alpha / lora_rank * B A x`.
        lora_targets: "all-linear", or the names of the linear layers to adapt, separated by commas.
        adapter_dim: width of a bottleneck adapter after the MLP of each block, before it is added to the
            rest; 0 for none. Its second matrix starts at zero.
        quantise: "nf4" packs the weights with bitsandbytes, and leaves them without gradient;
            "nf4_simulated" gives parameters of the usual size the same numbers, on any hardware. A recipe
            that trains these would leave the four bits: train the adapters.
    """

    def __init__(
        self,
        model: Any,
        *,
        lora_rank: int,
        lora_alpha: float,
        lora_targets: str,
        adapter_dim: int,
        quantise: Literal["none", "nf4", "nf4_simulated"],
    ) -> None:
        super().__init__()
        self.model = model
        ends = [_end_of_mlp(block) for block in self.layers] if adapter_dim else []  # before LoRA wraps them
        self._linears = list(self._linear_names()) if quantise != "none" else []
        self._packed = quantise == "nf4"
        for name in self._linears:
            if self._packed:
                self.set_submodule(name, nf4.pack(self.get_submodule(name)))
            else:
                _round(self.get_submodule(name))
        if lora_rank:
            self.model = _with_lora(model, lora_rank, lora_alpha, lora_targets)
        self.dim: int = model.get_input_embeddings().embedding_dim
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        if adapter_dim:
            for block, end in zip(self.layers, ends, strict=True):
                adapter = block.adapter = _Adapter(self.dim, adapter_dim)
                block.get_submodule(end).register_forward_hook(adapter.after)
        if lora_rank or adapter_dim:
            self.register_load_state_dict_pre_hook(_load_below_adapters)
        if self._packed:
            self.register_state_dict_post_hook(_save_unpacked)
            self.register_load_state_dict_pre_hook(_load_packed)
        elif self._linears:
            self.register_load_state_dict_post_hook(_round_loaded)
        # models with ALiBi read positions from the mask alone
        self._takes_positions = "position_ids" in signature(model.base_model.forward).parameters

    @property
    def packs(self) -> bool:
        """Whether samples may share a row: nothing but positions and a mask says what a position sees.

        Not so with ALiBi, a window, or layers that carry a state from one position to the next.
        """
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        window = getattr(config, "sliding_window", None) if not hasattr(config, "layer_types") else None
        return self._takes_positions and kinds == {"full_attention"} and window is None

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer's blocks, each called with hidden states (B, T, D) first."""
        return list(self.get_submodule(self._layers_name()).children())

    def embed(self, ids: Tensor) -> Tensor:
        """Look up ids (B, T) as embeddings (B, T, D)."""
        return self.model.get_input_embeddings()(ids)

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor | Seen | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Run the layers and the final norm.

        Args:
            embeds: embeddings (B, T, D).
            mask: True where a position is real, (B, T); with a cache of P positions (B, P + T). Or what each
                position sees, (B, T, P + T), in place of every rule of the model's own, such as a window; or
                the same as a rule, which FlexAttention takes as it is.
            positions: (B, T); by default they count the real positions, wherever the padding stands, and
                with a mask (B, T, P + T), which does not tell padding, all positions. Models with ALiBi
                follow the default whatever is given.
            cache: what `new_cache` gave; it is extended in place.
            wanted: (K,) of the B * T positions, counted over rows, those whose states matter. Nothing reads
                what the last block's MLP makes of others, so it runs at these alone.

        Returns:
            Hidden states (B, T, D). Those of padding positions, and of any not wanted, mean nothing.
        """
        length = embeds.shape[1]
        accepted: Any = mask
        if isinstance(mask, Seen):
            flexible = self.model.config._attn_implementation == "flex_attention"
            accepted = _sparse(mask) if flexible else self._four_dimensional(mask.dense(), embeds.dtype)
        elif mask is not None and mask.dim() == 3:
            if positions is None:
                past = mask.shape[2] - length
                positions = torch.arange(past, past + length, device=mask.device).expand(len(mask), -1)
            accepted = self._four_dimensional(mask, embeds.dtype)
        elif mask is not None and positions is None:
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)  # (B, P + T)
            positions = positions[:, -length:]  # -> (B, T)
        extra = {"position_ids": positions} if self._takes_positions else {}
        with self._masked(accepted) as taken, self._sparing(wanted, embeds):
            return self.model.base_model(
                inputs_embeds=embeds,
                attention_mask=taken,  # 2-D: transformers makes it causal, as its kernel wants it
                past_key_values=cache,
                use_cache=cache is not None,
                **extra,
            ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Score hidden states (..., D) over the vocabulary, (..., V)."""
        return self.model.get_output_embeddings()(hidden)

    def new_cache(self) -> Any:
        """Make an empty key-value cache; `crop(length)` leaves its first `length` positions."""
        return _cache_class()(config=self.model.config)

    def adapter_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """List the parameters of LoRA and of bottleneck adapters by name; empty without either."""
        return [(name, p) for name, p in self.named_parameters() if any(part in name for part in _ADAPTERS)]

    def base_linears(self) -> Iterator[tuple[str, nn.Module]]:
        """The quantised layers and their names, below LoRA where there is some."""
        for name in self._linears:
            if hasattr(self.get_submodule(name), "base_layer"):
                name = f"{name}.base_layer"
            yield name, self.get_submodule(name)

    def _layers_name(self) -> str:
        count = self.model.config.get_text_config().num_hidden_layers
        for name, module in self.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return name
        raise ValueError(f"no list of {count} blocks in a {type(self.model).__name__}")

    def _linear_names(self) -> Iterator[str]:
        name = self._layers_name()
        for below, module in self.get_submodule(name).named_modules():
            if _is_linear(module):
                yield f"{name}.{below}"

    def _four_dimensional(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """What is seen, bool (B, T, P + T), as the model's attention takes it, (B, 1, T, P + T)."""
        seen = seen.unsqueeze(1)
        if self.model.config._attn_implementation == "sdpa":
            return seen
        # added to the scores, where a bool would count as 0 and 1
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    def _sparing(self, wanted: Tensor | None, embeds: Tensor) -> AbstractContextManager[None]:
        """While open, the last block's MLP runs at these positions of the embeddings alone, where it can."""
        if wanted is None or (mlp := _mlp_of(self.layers[-1])) is None:
            return nullcontext()
        return only_at(mlp, wanted, embeds.shape[0], embeds.shape[1])

    @contextmanager
    def _masked(self, mask: Any) -> Iterator[Any]:
        """Give the mask that the model's forward accepts; while open, its blocks get the one meant."""
        if mask is None or len(mask.shape) == 2 or self.model.config.model_type != "bloom":
            yield mask
            return
        # it would make ALiBi from the mask, which has to be 2-D for that
        handles = [
            block.register_forward_pre_hook(
                lambda block, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
            )
            for block in self.layers
        ]
        try:
            yield None
        finally:
            for handle in handles:
                handle.remove()


@cache
def _cache_class() -> Any:
    from transformers import DynamicCache

    class Cache(DynamicCache):
        def crop(self, length: int) -> None:
            super().crop(
                length - self.get_seq_length()
            )  # theirs takes how many to remove, as a negative number

    return Cache


def _sparse(seen: Seen) -> Any:
    """The same as a block mask of FlexAttention, which skips what nothing sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    sample, block = seen.sample, seen.block

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = query >= key
        if block is not None:
            visible = visible | ((block[row, query] == block[row, key]) & (block[row, query] > 0))
        return visible & (sample[row, query] == sample[row, key])

    rows, length = sample.shape
    return create_block_mask(
        rule, rows, None, length, length, device=str(sample.device), _compile=sample.is_cuda
    )


class _Adapter(nn.Module):
    """A bottleneck that adds to what comes out of a layer; at the start nothing."""

    def __init__(self, dim: int, dim_inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, dim_inner)
        self.up = nn.Linear(dim_inner, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def after(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the layer: (B, T, D) -> (B, T, D)."""
        return output + self.up(functional.gelu(self.down(output)))


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _end_of_mlp(block: nn.Module) -> str:
    """The name of the linear layer that an MLP ends in: the last of a block, in every family with one MLP."""
    names = [name for name, module in block.named_modules() if _is_linear(module)]
    if not names or "att" in names[-1]:
        raise ValueError(f"adapter_dim: no MLP that ends in a linear layer in a {type(block).__name__}")
    return names[-1]


def _mlp_of(block: nn.Module) -> nn.Module | None:
    """The block's MLP where it surely maps each position by itself: linear layers, given the states alone."""
    mlp = getattr(block, "mlp", None)
    if mlp is None or len(signature(mlp.forward).parameters) != 1:
        return None
    holders = [module for module in mlp.modules() if next(module.parameters(recurse=False), None) is not None]
    return mlp if all(map(_is_linear, holders)) else None


def _with_lora(model: Any, rank: int, alpha: float, targets: str) -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    names = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
    model = inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        if parameter.is_floating_point():  # packed weights have no gradient
            parameter.requires_grad_(True)  # peft freezes the base; here the recipe does
    return model


def _load_below_adapters(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let a state dict without adapters be read as the base weights of a model with them."""
    lacking = [part for part in _ADAPTERS if not any(part in key for key in state)]
    for name, value in module.state_dict().items():
        plain = prefix + name.replace(".base_layer.", ".")
        if ".base_layer." in name and plain in state:
            state[prefix + name] = state.pop(plain)
        elif any(part in name for part in lacking):
            state[prefix + name] = value


def _round(layer: Any) -> None:
    """Round the weight of a linear layer in place; Conv1D of transformers keeps its own transposed."""
    if not layer.weight.is_meta:
        across = not isinstance(layer, nn.Linear)
        weight = nf4.rounded(layer.weight.T if across else layer.weight)
        layer.weight.data.copy_(weight.T if across else weight)


def _round_loaded(module: CausalLM, incompatible: Any) -> None:
    for _, layer in module.base_linears():
        _round(layer)


def _save_unpacked(module: CausalLM, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, layer in module.base_linears():
        weight = f"{prefix}{name}.weight"
        for key in [key for key in state if key.startswith(f"{weight}.")]:
            del state[key]  # scales and the like
        state[weight] = nf4.unpacked(layer)


def _load_packed(module: CausalLM, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, layer in module.base_linears():
        weight = f"{prefix}{name}.weight"
        if weight in state:
            nf4.pack_weight(layer, state[weight].to(layer.weight.device))
            state[weight] = layer.weight.data
