"""Text decoders: token embeddings to hidden states and logits."""
