"""Generate images with the depth of an image, or with a given depth map.

  python scripts/depth2img.py --init-img room.jpg --prompt "a room of ice" --ckpt 512-depth-ema.ckpt
  python scripts/depth2img.py --init-img room.jpg --depth room.exr --prompt "a room of ice" --strength 1.0
  python scripts/depth2img.py --init-img cutout.png --depth-from alpha --prompt "fluent emoji of a red apple"

The model's own depth network estimates the depth, or --depth FILE gives it, with or without an input image.
With --strength 1.0 only the depth of the input image is kept. The results have exactly the size of the input
image.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Depth2Img  # noqa: E402

if __name__ == "__main__":
    main(Depth2Img, __doc__)
