"""A causal language model of transformers as a text decoder: embed, run, score, cache, LoRA."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor, nn

__all__ = ["CausalLM"]


class CausalLM(nn.Module):
    """A causal language model that is fed embeddings and gives hidden states.

    With LoRA (arXiv:2106.09685) every base weight stays trainable here: which parameters train is the
    recipe's decision, and `adapter_parameters` tells it which ones are the adapters. A state dict written
    without LoRA loads into a model with it; the adapters then keep their values.

    Args:
        model: a causal language model of transformers.
        lora_rank: rank of the LoRA adapters; 0 for none.
        lora_alpha: scale of the adapters, which add `lora_alpha / lora_rank * B A x`.
        lora_targets: "all-linear", or the names of the linear layers to adapt, separated by commas.
    """

    def __init__(self, model: Any, *, lora_rank: int, lora_alpha: float, lora_targets: str) -> None:
        super().__init__()
        if lora_rank:
            model = _with_lora(model, lora_rank, lora_alpha, lora_targets)
            self.register_load_state_dict_pre_hook(_load_below_adapters)
        self.model = model
        self.dim: int = model.get_input_embeddings().embedding_dim
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        # models with ALiBi read positions from the mask alone
        self._takes_positions = "position_ids" in signature(model.base_model.forward).parameters

    def embed(self, ids: Tensor) -> Tensor:
        """Look up ids (B, T) as embeddings (B, T, D)."""
        return self.model.get_input_embeddings()(ids)

    def forward(
        self, embeds: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Run the layers and the final norm.

        Args:
            embeds: embeddings (B, T, D).
            mask: True where a position is real, (B, T); with a cache of P positions (B, P + T).
            positions: (B, T); by default they count the real positions, wherever the padding stands.
            cache: what `new_cache` gave; it is extended in place.

        Returns:
            Hidden states (B, T, D). Those of padding positions mean nothing.
        """
        if mask is not None and positions is None:
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)  # (B, P + T)
            positions = positions[:, -embeds.shape[1] :]  # -> (B, T)
        extra = {"position_ids": positions} if self._takes_positions else {}
        return self.model.base_model(
            inputs_embeds=embeds,
            attention_mask=mask,  # 2-D: transformers makes it causal, as its attention kernel wants it
            past_key_values=cache,
            use_cache=cache is not None,
            **extra,
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Score hidden states (..., D) over the vocabulary, (..., V)."""
        return self.model.get_output_embeddings()(hidden)

    def new_cache(self) -> Any:
        """Make an empty key-value cache."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def adapter_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """List the LoRA parameters by name; empty without LoRA."""
        return [(name, parameter) for name, parameter in self.named_parameters() if ".lora_" in name]


def _with_lora(model: Any, rank: int, alpha: float, targets: str) -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    names = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
    model = inject_adapter_in_model(config, model)
    return model.requires_grad_(True)  # peft freezes the base; here the recipe does


def _load_below_adapters(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let a state dict without adapters be read as the base weights of a model with them."""
    if any(".lora_" in key for key in state):
        return
    for name, value in module.state_dict().items():
        plain = prefix + name.replace(".base_layer.", ".")
        if ".base_layer." in name and plain in state:
            state[prefix + name] = state.pop(plain)
        elif ".lora_" in name:
            state[prefix + name] = value
