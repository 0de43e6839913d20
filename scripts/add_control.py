"""Add an untrained ControlNet to a model, to train it with scripts/train.py.

  python scripts/add_control.py v1-5-pruned.ckpt control_sd15_ini.ckpt
  python scripts/add_control.py v2-1_512-ema-pruned.ckpt control_sd21_ini.ckpt
  python scripts/add_control.py v1-5-pruned.ckpt canny_ini.safetensors --control-only

The family is found by the width of the text's context. Tensors that the model does not have are printed.
Training makes the same ControlNet in memory if it is given none.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import add_control  # noqa: E402

if __name__ == "__main__":
    sys.exit(add_control.main(__doc__))
