"""Connectors: encoder tokens to tokens of the language model."""
