"""Merge models: a weighted sum of two, or what one model learnt added to another.

  python scripts/merge.py A.safetensors B.ckpt --alpha 0.3                     0.7 A + 0.3 B
  python scripts/merge.py sd-v1-5-inpainting.ckpt custom.safetensors v1-5-pruned.ckpt --alpha 1 \\
      --mode add-difference --out custom-inpainting.safetensors                A + 1 (B - C)

Models of one kind go together: the same family, task and prediction. In add-difference, A may have more
input channels (inpainting) than B and C. Any layout is read; one published .safetensors file is written.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import merge  # noqa: E402

if __name__ == "__main__":
    sys.exit(merge.main(__doc__))
