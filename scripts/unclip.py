"""Generate variations of an image, or of a mix of several, guided by a prompt.

  python scripts/unclip.py --init-img apple.png --scale 3                        the demo model
  python scripts/unclip.py --init-img cat.jpg --noise-level 300 --ckpt sd21-unclip-h.ckpt
  python scripts/unclip.py --init-img cat.jpg fox.png --image-weights 2 1 --prompt "in the snow" \\
      --ckpt sd21-unclip-l.ckpt

--noise-level sets how far the results may deviate: 0 stays close to the image, 999 ignores it. As in the
reference demo, noise is also added to the mix of several images (--mix-noise-level). The demo has "a
professional photograph" as its default prompt; here the default is no prompt. unCLIP-L needs the file
ViT-L-14_stats.th next to the weights, or weights that contain these statistics, such as the folders that
scripts/convert.py writes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Unclip  # noqa: E402

if __name__ == "__main__":
    main(Unclip, __doc__)
