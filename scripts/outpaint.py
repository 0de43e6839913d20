"""Extend an image at its sides; the image itself stays as it is, byte for byte.

  python scripts/outpaint.py --init-img cat.png --left 64 --right 64 --prompt "a cat"           the demo model
  python scripts/outpaint.py --init-img room.jpg --right 512 --up 200 --ckpt 512-inpainting-ema.ckpt
  python scripts/outpaint.py --init-img room.jpg --down 256 --prompt "a carpet" --ckpt v1-5-pruned.ckpt

Any size works. Images larger than the training size of the model are extended in windows, each of which
overlaps with existing pixels. Inpainting models get the mask as an input; with any text-to-image model,
latent masking keeps the existing pixels.

45 steps, scale 10 and eta 1 for DDIM are the defaults of the reference inpainting demo; --ddim_eta 0 is
deterministic.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Outpaint  # noqa: E402

if __name__ == "__main__":
    main(Outpaint, __doc__)
