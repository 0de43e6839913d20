"""Make pictures from a picture and a prompt.

  python scripts/img2img.py --init-img sketch.png --prompt "a castle by the sea" --strength 0.7 \\
      --ckpt v2-1_512-ema-pruned.ckpt
  python scripts/img2img.py --init-img photo.jpg --prompt "a watercolour" --H 512 --W 768 --fit crop

The pictures have exactly the size of the init image, whatever it is, or that of --H and --W. An old command
of the published script is repeated with --fit stretch where a side is no multiple of 64.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.reference_scripts import chunk, load_img, load_model_from_config  # noqa: E402, F401  for other scripts
from ldm.requests import Img2Img  # noqa: E402

if __name__ == "__main__":
    main(Img2Img, __doc__)
