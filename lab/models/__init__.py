"""Components composed into a system: sequence assembly, losses, generation."""
