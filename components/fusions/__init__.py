"""How visual tokens enter the language model."""
