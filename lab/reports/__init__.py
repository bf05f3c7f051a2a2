"""Numbers into tables, pictures and words."""
