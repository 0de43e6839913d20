"""Colour profiles: from the colours of a file to sRGB, which the models know, and back.

A profile is the bytes of an ICC profile. PNG files may describe their colours by a gamma and primaries
instead (gAMA, cHRM); these become a profile as well, with primaries adapted to ICC's white D50 by Bradford's
matrix (ICC.1:2022, annex E). An image without any is in sRGB.
"""

import functools
import io
import struct

import numpy as np
from PIL import Image, ImageCms

NEAR = 2  # levels of 255: a profile that changes no colour by more is sRGB
SRGB_POINTS = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x, y of white, red, green, blue
SRGB_GAMMA = 1 / 2.2
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50 = np.array([0.9642, 1.0, 0.8249])
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # of ICC -> of Pillow


def profile_of(image: Image.Image) -> bytes | None:
    """Return the profile of an open image; None if its colours are those of sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode == "LAB" or profile or "srgb" in image.info:
        return _lab_profile() if image.mode == "LAB" else profile or None
    gamma, points = image.info.get("gamma") or SRGB_GAMMA, image.info.get("chromaticity") or SRGB_POINTS
    if np.allclose([gamma, *points], [SRGB_GAMMA, *SRGB_POINTS], atol=0.005):
        return None
    return made_profile(1 / gamma, points)


def mode_of(profile: bytes) -> str:
    """Return Pillow's name of the colours that a profile describes.

    Raises: ImageCms.PyCMSError for a damaged profile; ValueError for unusual colours.
    """
    space = _opened(profile).profile.xcolor_space.strip()
    if space not in MODES:
        raise ValueError(f"it describes {space} colours")
    return MODES[space]


def name_of(profile: bytes) -> str:
    """Return what a profile calls itself, in at most 60 printable characters."""
    text = "".join(c for c in ImageCms.getProfileDescription(_opened(profile)) if c.isprintable())
    return text.strip()[:60] or "unnamed"


@functools.lru_cache(8)
def is_srgb(profile: bytes) -> bool:
    """Return whether the RGB colours of a profile are those of sRGB, whatever it is called."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    return int(np.abs(to_srgb(cube, profile).astype(int) - cube).max()) <= NEAR


def to_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Convert uint8 pixels (h, w, 3 or 4) of an RGB profile to sRGB; alpha stays. None is sRGB."""
    return _converted(pixels, profile, to_profile=False)


def from_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Convert uint8 sRGB pixels (h, w, 3 or 4) to the colours of an RGB profile; alpha stays."""
    return _converted(pixels, profile, to_profile=True)


def srgb_image(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an image of the profile's own mode (L, CMYK or LAB) to sRGB, mode RGB."""
    return ImageCms.applyTransform(image, _transform(profile, False))


def made_profile(exponent: float, points: tuple[float, ...]) -> bytes:
    """Return an RGB profile with the curve value^exponent.

    Args:
        points: x and y of white, red, green and blue.

    Raises: ValueError for impossible values.
    """
    x, y = np.array(points, np.float64).reshape(4, 2).T
    if not (0.1 <= exponent <= 10 and (y > 1e-3).all()):
        raise ValueError(f"its gamma is {1 / exponent:.4g} and its chromaticities {points}")
    white, *primaries = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    matrix = np.array(primaries).T
    try:
        matrix = matrix * np.linalg.solve(matrix, white)  # scaled so that their sum is white
    except np.linalg.LinAlgError as error:
        raise ValueError("its primaries lie on one line") from error
    adapt = np.linalg.solve(BRADFORD, np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD)
    red, green, blue = (adapt @ matrix).T
    text = b"gAMA and cHRM of a PNG file\0"
    curve = b"curv" + struct.pack(">IIHxx", 0, 1, round(256 * exponent))
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(D50), b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI", start + len(data), b"none", 0x02400000) + b"mntrRGB XYZ " + bytes(12)
    header += b"acsp" + bytes(28) + _xyz(D50)[8:] + bytes(48)
    return header + table + data


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + struct.pack(">I3i", 0, *(round(65536 * float(value)) for value in values))


def _converted(pixels: np.ndarray, profile: bytes | None, to_profile: bool) -> np.ndarray:
    if profile is None:
        return pixels
    colours = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    result = np.asarray(ImageCms.applyTransform(colours, _transform(profile, to_profile)))
    return result if pixels.shape[-1] == 3 else np.dstack([result, pixels[..., 3]])


@functools.lru_cache(8)
def _transform(profile: bytes, to_profile: bool) -> ImageCms.ImageCmsTransform:
    own, srgb = (_opened(profile), mode_of(profile)), (ImageCms.createProfile("sRGB"), "RGB")
    (source, in_mode), (target, out_mode) = (srgb, own) if to_profile else (own, srgb)
    return ImageCms.buildTransform(source, target, in_mode, out_mode)


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def _lab_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
