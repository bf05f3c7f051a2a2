"""A graph on SLURM."""
