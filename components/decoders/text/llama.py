"""A Llama of any size with random weights, to be trained from scratch.

Paper: LLaMA: Open and Efficient Foundation Language Models, arXiv:2302.13971, section 2.2
"""

from __future__ import annotations

from typing import Literal

from components.layers.causal_lm import CausalLM

__all__ = ["Llama"]


class Llama(CausalLM):
    """Pre-norm transformer with RMSNorm, rotary positions and SwiGLU, from transformers.

    The defaults are tiny. Vicuna's 7B is dim 4096, depth 32, num_heads 32, intermediate_size 11008, norm_eps
    1.0e-5, max_positions 4096, tie_embeddings false; Mistral's 7B (without a window) the same with
    num_key_value_heads 8, intermediate_size 14336, rope_theta 1.0e6, max_positions 32768.

    Args:
        vocab_size: V.
        dim: width, D.
        depth: transformer blocks.
        num_heads: attention heads.
        num_key_value_heads: heads of keys and values; as many as `num_heads` if left out.
        head_dim: width of a head; `dim / num_heads` if left out.
        mlp_ratio: hidden width of a block's MLP, relative to `dim`; SwiGLU has three matrices of this width.
        intermediate_size: this width itself; it goes before `mlp_ratio`.
        norm_eps: added to the mean square in RMSNorm.
        rope_theta: base of the rotary positions.
        rope_scaling: how longer texts fit, in the terms of transformers, such as
            `{rope_type: linear, factor: 4.0}`; the positions as they are if left out.
        max_positions: longest sequence meant; a fact for others, which limits nothing here.
        tie_embeddings: score tokens with their input embeddings.
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
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        mlp_ratio: float = 2.7,
        intermediate_size: int | None = None,
        norm_eps: float = 1e-6,
        rope_theta: float = 10000.0,
        rope_scaling: dict | None = None,
        max_positions: int = 2048,
        tie_embeddings: bool = True,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        lora_targets: str = "all-linear",
        adapter_dim: int = 0,
        quantise: Literal["none", "nf4", "nf4_simulated"] = "none",
    ) -> None:
        if head_dim is None and dim % (2 * num_heads):
            raise ValueError(f"dim {dim} is not a multiple of twice num_heads {num_heads}")
        if head_dim is not None and head_dim % 2:
            raise ValueError(f"head_dim {head_dim} is odd, but rotary positions turn pairs")
        if num_key_value_heads is not None and num_heads % num_key_value_heads:
            raise ValueError(
                f"num_heads {num_heads} is not a multiple of num_key_value_heads {num_key_value_heads}"
            )
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=dim,
            intermediate_size=int(dim * mlp_ratio) if intermediate_size is None else intermediate_size,
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads if num_key_value_heads is None else num_key_value_heads,
            head_dim=dim // num_heads if head_dim is None else head_dim,
            rms_norm_eps=norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta, **(rope_scaling or {})},
            max_position_embeddings=max_positions,
            tie_word_embeddings=tie_embeddings,
            # the usual 0.02 is near 1 / sqrt(width) for widths in the thousands; keep that relation here
            initializer_range=0.5 * dim**-0.5,
            attn_implementation="sdpa",
        )
        super().__init__(
            LlamaForCausalLM(config),
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            adapter_dim=adapter_dim,
            quantise=quantise,
        )
