"""Visual heads: language model states to visual tokens, and the visual tokens that the language model reads back."""
