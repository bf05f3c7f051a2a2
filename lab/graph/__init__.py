"""Declaration to stages to results: what runs, when, and from what."""
