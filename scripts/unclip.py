"""Make variations of a picture, or a mix of several, as a prompt says.

  python scripts/unclip.py --init-img apple.png --scale 3                        the demo model
  python scripts/unclip.py --init-img cat.jpg --noise-level 300 --ckpt sd21-unclip-h.ckpt
  python scripts/unclip.py --init-img cat.jpg fox.png --image-weights 2 1 --prompt "in the snow" \\
      --ckpt sd21-unclip-l.ckpt

--noise-level says how freely: 0 stays near the picture, 999 keeps nothing of it. The mix of several pictures
is noised once more, as on the published page (--mix-noise-level). That has "a professional photograph" as its
prompt; here the pictures speak alone, unless one is given. unCLIP-L needs the file ViT-L-14_stats.th beside
the weights, or weights that hold those statistics, as folders that scripts/convert.py writes do.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Unclip  # noqa: E402

if __name__ == "__main__":
    main(Unclip, __doc__)
