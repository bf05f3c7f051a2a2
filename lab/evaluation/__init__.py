"""From what a trained system does to numbers."""
