"""What the network sees: samples as lists of segments, tokenisation, batches, mixes."""
