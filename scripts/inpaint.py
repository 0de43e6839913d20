"""Repaint a part of an image, guided by a prompt; all other pixels stay as they are, byte for byte.

  python scripts/inpaint.py --init-img room.png --mask sofa.png --prompt "a red armchair"    the demo model
  python scripts/inpaint.py --init-img cut-out.png --prompt "a meadow" --ckpt 512-inpainting-ema.ckpt
  python scripts/inpaint.py --init-img room.png --mask sofa.png --prompt "a dog" --ckpt v1-5-pruned.ckpt

The mask is white where the image is to be repainted; without --mask the transparent part of the image is
repainted. Inpainting models get the mask as an input; with any text-to-image model, latent masking keeps the
rest of the image.

45 steps, scale 10, 4 images and eta 1 for DDIM are the defaults of the reference demo; --ddim_eta 0 is
deterministic.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Inpaint  # noqa: E402

if __name__ == "__main__":
    main(Inpaint, __doc__)
