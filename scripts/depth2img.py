"""Make pictures of a given depth: of a picture's, or of a depth map's.

  python scripts/depth2img.py --init-img room.jpg --prompt "a room of ice" --ckpt 512-depth-ema.ckpt
  python scripts/depth2img.py --init-img room.jpg --depth room.exr --prompt "a room of ice" --strength 1.0
  python scripts/depth2img.py --init-img cutout.png --depth-from alpha --prompt "fluent emoji of a red apple"

Depth is estimated by the model's own network, or read from --depth FILE, alone or beside the picture. At
--strength 1.0 nothing but the depth is kept. The pictures have exactly the size of the init image.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Depth2Img  # noqa: E402

if __name__ == "__main__":
    main(Depth2Img, __doc__)
