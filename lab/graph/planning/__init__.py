"""How a graph looks, and what running it will take."""
