"""Make pictures from a prompt.

  python scripts/txt2img.py --prompt "a red apple next to a cat"                 the demo model
  python scripts/txt2img.py --prompt "a lighthouse" --ckpt v2-1_512-ema-pruned.ckpt
  python scripts/txt2img.py --from-file prompts.txt --ckpt v2-1_768-ema-pruned.safetensors \\
      --config configs/stable-diffusion/v2-inference-v.yaml --H 768 --W 768 --dpm --steps 20
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import main  # noqa: E402
from ldm.reference_scripts import chunk, load_model_from_config, put_watermark  # noqa: E402, F401  for other scripts
from ldm.requests import Txt2Img  # noqa: E402

if __name__ == "__main__":
    main(Txt2Img, __doc__)
