"""Print the text of an image's invisible watermark, or null.

  python scripts/tests/test_watermark.py image.png
  python scripts/tests/test_watermark.py --img_path image.png

Like the reference script it reads 136 bits, the length of StableDiffusionV1; it also knows the 32 bits SDV2
of the Stable Diffusion 2 scripts, which the reference script could not read.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works without being installed

from ldm.cli import watermark  # noqa: E402

if __name__ == "__main__":
    sys.exit(watermark.main(__doc__))
