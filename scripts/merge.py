"""Merge models: a weighted sum of two, or the difference of two added to a third.

  python scripts/merge.py A.safetensors B.ckpt --alpha 0.3                     0.7 A + 0.3 B
  python scripts/merge.py sd-v1-5-inpainting.ckpt custom.safetensors v1-5-pruned.ckpt --alpha 1 \\
      --mode add-difference --out custom-inpainting.safetensors                A + 1 (B - C)

The models must have the same family, task and prediction. In add-difference, A may have more input channels
(inpainting) than B and C. All layouts are read; the result is one .safetensors file with LDM key names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import merge  # noqa: E402

if __name__ == "__main__":
    sys.exit(merge.main(__doc__))
