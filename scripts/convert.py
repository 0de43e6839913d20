"""Convert a checkpoint between one file and a diffusers folder, both ways and bit by bit.

  python scripts/convert.py v2-1_512-ema-pruned.ckpt v2-1.safetensors           another container
  python scripts/convert.py v2-1_512-ema-pruned.safetensors sd21                a folder that diffusers loads
  python scripts/convert.py sd21 back.safetensors                               and back
  python scripts/convert.py v1-5-pruned.ckpt v1-5-ema.safetensors --weights ema --prune --dtype float16
  python scripts/convert.py configs/demo/emoji.safetensors emoji --config configs/demo/emoji.yaml

A folder becomes a file. A file becomes a file if OUT ends in .safetensors, and a folder if it does not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import convert  # noqa: E402

if __name__ == "__main__":
    sys.exit(convert.main(__doc__))
