"""Encoders: pixels to tokens."""
