"""Visual heads: language model states to visual tokens, and visual tokens back to its inputs."""
