"""Decoders: back to text or to pixels."""
