"""Any causal language model of transformers: pretrained from a local folder or the hub, or from scratch.

Paper: none
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from components.layers.causal_lm import CausalLM
from components.layers.pretrained import load

__all__ = ["Hf"]


class Hf(CausalLM):
    """A language model of any family; its embeddings grow when the vocabulary asked for is larger.

    Args:
        vocab_size: V; a model with more entries keeps them.
        path: local folder, or name on the Hugging Face hub.
        config: in place of `path`, a model with random weights: its family as `model_type`, such as `gpt2`,
            and settings of that family as transformers calls them.
        lora_rank: rank of LoRA adapters; 0 for none.
        lora_alpha: scale of the adapters.
        lora_targets: "all-linear", or names of linear layers, separated by commas.
        adapter_dim: width of bottleneck adapters after the MLPs; 0 for none.
        quantise: the blocks' linear layers in four bits: "nf4" with bitsandbytes, "nf4_simulated" the same
            numbers at full size.

    Shapes: embeds (B, T, D), mask (B, T) -> hidden (B, T, D).
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        path: str = "HuggingFaceTB/SmolLM2-135M",
        config: dict | None = None,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        lora_targets: str = "all-linear",
        adapter_dim: int = 0,
        quantise: Literal["none", "nf4", "nf4_simulated"] = "none",
    ) -> None:
        if config is not None:
            path = f"a new {config.get('model_type')}"
            model = _from_scratch({"vocab_size": vocab_size, **config})
        else:
            from transformers import AutoModelForCausalLM

            model = load(
                AutoModelForCausalLM,
                path,
                "causal language model",
                dtype=torch.float32,
                output_loading_info=True,
            )
        if vocab_size > model.get_input_embeddings().num_embeddings:
            # the new rows' default, drawn around the mean of the old ones, needs numbers
            meta = model.get_input_embeddings().weight.is_meta
            model.resize_token_embeddings(vocab_size, mean_resizing=not meta)
        super().__init__(
            model,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            adapter_dim=adapter_dim,
            quantise=quantise,
        )
        if not model.get_input_embeddings().weight.is_meta:
            self._check(path)

    def _check(self, path: str) -> None:
        """Refuse a model that does more to its logits than its output layer, such as capping them."""
        training = self.training
        self.eval()
        ids = torch.arange(2).unsqueeze(0)  # (1, 2)
        with torch.no_grad():
            same = torch.allclose(
                self.logits(self(self.embed(ids))), self.model(input_ids=ids).logits, atol=1e-3, rtol=1e-3
            )
        self.train(training)
        if not same:
            raise ValueError(
                f"'{path}' scales or caps its logits after the output layer, which is not supported"
            )


def _from_scratch(settings: dict[str, Any]) -> Any:
    """Build a family's causal language model with random weights.

    Raises:
        ValueError: no such family, a setting it does not have, or one it refuses.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES

    family = settings.pop("model_type", None)
    if family not in FAMILIES:
        raise ValueError(f"config: model_type {family!r} is no causal language model of transformers")
    usual = AutoConfig.for_model(family)
    if unknown := [name for name in settings if not hasattr(usual, name)]:
        raise ValueError(f"config: {family} has no setting {', '.join(unknown)}")
    # no id of this vocabulary is padding, whatever the family's own vocabulary has there
    config = AutoConfig.for_model(family, **{"pad_token_id": None, **settings})
    return AutoModelForCausalLM.from_config(config)
