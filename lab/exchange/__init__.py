"""Models in the formats of other libraries: arms written for transformers and diffusers, checkpoints read."""
