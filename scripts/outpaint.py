"""Make a picture larger at its sides: what is added is painted, the picture itself stays byte for byte.

  python scripts/outpaint.py --init-img cat.png --left 64 --right 64 --prompt "a cat"           the demo model
  python scripts/outpaint.py --init-img room.jpg --right 512 --up 200 --ckpt 512-inpainting-ema.ckpt
  python scripts/outpaint.py --init-img room.jpg --down 256 --prompt "a carpet" --ckpt v1-5-pruned.ckpt

Any size and shape. What is larger than the model was trained at is painted window by window, each of which
sees what is there already. Models made for inpainting see the mask; any text-to-image model is held to it.

45 steps, scale 10 and eta 1 for DDIM are those of the published inpainting page; --ddim_eta 0 is
deterministic.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Outpaint  # noqa: E402

if __name__ == "__main__":
    main(Outpaint, __doc__)
