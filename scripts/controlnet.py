"""Generate images from a prompt and the maps of one or more images, by ControlNets.

  python scripts/controlnet.py --control canny:photo.png --prompt "flat emoji of a red apple"    demo model
  python scripts/controlnet.py --control canny:photo.png@0.8[0-0.6] --control depth:photo.png \\
      --control-ckpt control_v11p_sd15_canny.pth control_v11f1p_sd15_depth.pth \\
      --annotator-weights dpt_hybrid-midas-501f0c75.pt --ckpt v1-5-pruned.safetensors --prompt "a kitchen"
  python scripts/controlnet.py --ckpt control_sd15_canny.pth --control map:edges.png --prompt "a kitchen"

Without --H and --W the result has the proportions of the first image. The options of controls are also
those of txt2img.py, img2img.py, inpaint.py, outpaint.py, depth2img.py and unclip.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Controlnet  # noqa: E402

if __name__ == "__main__":
    main(Controlnet, __doc__)
