"""Caching what a frozen encoder makes of images: which images, whether it pays, who reads it."""
