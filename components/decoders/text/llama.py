"""A tiny Llama with random weights, to be trained from scratch.

Paper: LLaMA: Open and Efficient Foundation Language Models, arXiv:2302.13971, section 2.2
"""

from __future__ import annotations

from components.layers.causal_lm import CausalLM

__all__ = ["Llama"]


class Llama(CausalLM):
    """Pre-norm transformer with RMSNorm, rotary positions and SwiGLU, from transformers.

    Args:
        vocab_size: V.
        dim: width, D.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP, relative to `dim`; SwiGLU has three matrices of this width.
        tie_embeddings: score tokens with their input embeddings.
        lora_rank: rank of LoRA adapters; 0 for none.
        lora_alpha: scale of the adapters.
        lora_targets: "all-linear", or names of linear layers, separated by commas.

    Shapes: embeds (B, T, D), mask (B, T) -> hidden (B, T, D).
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 2.7,
        tie_embeddings: bool = True,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        lora_targets: str = "all-linear",
    ) -> None:
        if dim % (2 * num_heads):
            raise ValueError(f"dim {dim} is not a multiple of twice num_heads {num_heads}")
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=dim,
            intermediate_size=int(dim * mlp_ratio),
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            tie_word_embeddings=tie_embeddings,
            # the usual 0.02 is near 1 / sqrt(width) for widths in the thousands; keep that relation here
            initializer_range=0.5 * dim**-0.5,
            attn_implementation="sdpa",
        )
        super().__init__(
            LlamaForCausalLM(config), lora_rank=lora_rank, lora_alpha=lora_alpha, lora_targets=lora_targets
        )
