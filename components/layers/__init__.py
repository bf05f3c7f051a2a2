"""Mathematics that two or more parts share."""
