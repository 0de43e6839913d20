"""Convert a checkpoint between one file and a diffusers folder, losslessly in both directions.

  python scripts/convert.py v2-1_512-ema-pruned.ckpt v2-1.safetensors           another container
  python scripts/convert.py v2-1_512-ema-pruned.safetensors sd21                a folder that diffusers loads
  python scripts/convert.py sd21 back.safetensors                               and back
  python scripts/convert.py v1-5-pruned.ckpt v1-5-ema.safetensors --weights ema --prune --dtype float16
  python scripts/convert.py control_sd15_canny.pth canny --only controlnet      a ControlNetModel of diffusers
  python scripts/convert.py diff_control.safetensors canny.safetensors --base v1-5-pruned.safetensors
  python scripts/convert.py configs/demo/emoji.safetensors emoji --config configs/demo/emoji.yaml

A folder is converted to a file. A file is converted to a file if OUT ends in .safetensors, and to a folder
otherwise.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import convert  # noqa: E402

if __name__ == "__main__":
    sys.exit(convert.main(__doc__))
