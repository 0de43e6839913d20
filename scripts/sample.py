"""Make pictures without a prompt: of a model without text encoder, or by the empty prompt of one that has it.

  python scripts/sample.py                                               the demo model
  python scripts/sample.py --n_samples 4 --n_iter 8 --ckpt v2-1_512-ema-pruned.ckpt
  python scripts/sample.py --config runs/unconditional/model.yaml --ckpt runs/unconditional/model.safetensors

The published script, sample_diffusion.py, makes batches of 10 in 50 steps too, with DDIM's eta at 1: --eta 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.requests import Sample  # noqa: E402

if __name__ == "__main__":
    main(Sample, __doc__)
