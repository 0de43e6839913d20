"""Work that outlives one image."""
