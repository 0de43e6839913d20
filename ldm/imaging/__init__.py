"""Images as files and arrays: opening, colour, padding, grids, watermark, metadata."""
