"""Any causal language model of transformers, pretrained, from a local folder or the hub.

Paper: none
"""

from __future__ import annotations

import torch

from components.layers.causal_lm import CausalLM
from components.layers.pretrained import load

__all__ = ["Hf"]


class Hf(CausalLM):
    """A pretrained language model; its embeddings grow when the vocabulary asked for is larger.

    Args:
        vocab_size: V; a model with more entries keeps them.
        path: local folder, or name on the Hugging Face hub.
        lora_rank: rank of LoRA adapters; 0 for none.
        lora_alpha: scale of the adapters.
        lora_targets: "all-linear", or names of linear layers, separated by commas.

    Shapes: embeds (B, T, D), mask (B, T) -> hidden (B, T, D).
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        path: str = "HuggingFaceTB/SmolLM2-135M",
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        lora_targets: str = "all-linear",
    ) -> None:
        from transformers import AutoModelForCausalLM

        model = load(
            AutoModelForCausalLM,
            path,
            "causal language model",
            dtype=torch.float32,
            output_loading_info=True,
        )
        if vocab_size > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(vocab_size)
        super().__init__(model, lora_rank=lora_rank, lora_alpha=lora_alpha, lora_targets=lora_targets)
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
