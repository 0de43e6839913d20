"""Make a picture four times as large, as a prompt says.

  python scripts/upscale.py --init-img small.png                                the demo model
  python scripts/upscale.py --init-img cat.jpg --prompt "a photograph of a cat" --ckpt x4-upscaler-ema.ckpt

The result is exactly 4 times as wide and as high, whatever the size. --noise-level says how much the model
may invent. What does not fit into memory is made in tiles: --max-memory, --tile.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Upscale  # noqa: E402

if __name__ == "__main__":
    main(Upscale, __doc__)
