"""Image decoders: visual tokens to pixels."""
