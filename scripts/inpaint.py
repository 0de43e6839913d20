"""Paint a part of a picture anew, as a prompt says; every other pixel stays as it is, byte for byte.

  python scripts/inpaint.py --init-img room.png --mask sofa.png --prompt "a red armchair"    the demo model
  python scripts/inpaint.py --init-img cut-out.png --prompt "a meadow" --ckpt 512-inpainting-ema.ckpt
  python scripts/inpaint.py --init-img room.png --mask sofa.png --prompt "a dog" --ckpt v1-5-pruned.ckpt

The mask is white where to paint; without --mask it is what is transparent in the picture. Models made for
inpainting see the mask; any text-to-image model is held to it by latent masking.

45 steps, scale 10, 4 pictures and eta 1 for DDIM are those of the published page; --ddim_eta 0 is
deterministic.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Inpaint  # noqa: E402

if __name__ == "__main__":
    main(Inpaint, __doc__)
