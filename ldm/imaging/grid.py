"""Arrange images in a grid on black, with 2 pixels between and around them.

A single image gets no frame: its grid is the image itself.
"""

import math
from collections.abc import Sequence

import numpy as np

PADDING = 2


def make_grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Place uint8 images (h, w, 3) of one size row by row, `columns` per row; unused cells stay black."""
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
