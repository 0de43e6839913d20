"""Write an image as PNG, JPEG or WebP with its metadata and colour profile.

| format | pixels                                           | the web UI's text | our record             |
|--------|--------------------------------------------------|-------------------|------------------------|
| png    | exact                                            | text chunk        | text chunk             |
| jpg    | lossy, colours at full resolution from 90 on     | EXIF UserComment  | XMP, at most 64 kB     |
| webp   | lossy; exact at quality 100                      | EXIF UserComment  | XMP                    |

JPEG has no alpha.
"""

import io
from typing import Any

import numpy as np
from PIL import Image

from ldm.imaging import metadata

FORMATS = ("png", "jpg", "webp")
QUALITY = 95
FULL_COLOUR = 90  # from this quality on
MOST_PIXELS = {"jpg": 65_500, "webp": 16_383}  # per side
MOST_SEGMENT = 65_533  # bytes of a part of a JPEG file
XMP = b"http://ns.adobe.com/xap/1.0/\0"


def encoded(
    image: np.ndarray, format: str, quality: int | None, record: dict[str, Any] | None, profile: bytes | None
) -> bytes:
    """Return the bytes of an image file.

    Args:
        image: (h, w, 3 or, but for jpg, 4) uint8.
        quality: 1 to 100, of jpg and webp; None is QUALITY.
        record: see `ldm.jobs.record`; None for a file without metadata.
        profile: ICC profile; None for sRGB.
    """
    buffer, quality = io.BytesIO(), quality or QUALITY
    options: dict[str, Any] = {} if profile is None else {"icc_profile": profile}
    if format == "png":
        chunks = None if record is None else metadata.png_chunks(record)
        Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks, **options)
        return buffer.getvalue()
    exif, xmp = (b"", b"") if record is None else (metadata.exif(record), metadata.xmp(record))
    if format == "webp":
        options |= {"lossless": quality == 100, "exact": True, "exif": exif, "xmp": xmp}
        Image.fromarray(image).save(buffer, "WEBP", quality=quality, **options)
        return buffer.getvalue()
    segment = XMP + xmp
    if xmp and len(segment) <= MOST_SEGMENT:
        options["extra"] = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    if len(exif) <= MOST_SEGMENT:
        options["exif"] = exif
    subsampling = 0 if quality >= FULL_COLOUR else 2  # 4:4:4, or 4:2:0
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling, **options)
    return buffer.getvalue()


def holds(format: str, record: dict[str, Any]) -> bool:
    """Return whether a file of this format has room for the record."""
    return format != "jpg" or len(XMP + metadata.xmp(record)) <= MOST_SEGMENT


def decoded(data: bytes) -> np.ndarray:
    """Return the pixels (h, w, 3 or 4) uint8 of what `encoded` wrote, as other programs will see them."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)
