"""Lay pictures out on one sheet: black, 2 pixels between and around them.

One picture alone gets no frame, so its sheet is the picture itself.
"""

import math
from collections.abc import Sequence

import numpy as np

PADDING = 2


def make_grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Place uint8 images (h, w, 3) of one size row by row, `columns` in a row; unused cells stay black."""
    if len(images) == 1:
        return images[0]
    height, width, channels = images[0].shape
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell_height, cell_width = height + PADDING, width + PADDING
    sheet = np.zeros((rows * cell_height + PADDING, columns * cell_width + PADDING, channels), np.uint8)
    for index, image in enumerate(images):
        top = PADDING + index // columns * cell_height
        left = PADDING + index % columns * cell_width
        sheet[top : top + height, left : left + width] = image
    return sheet
