"""Train an autoencoder, a diffusion model or a small CLIP.

    python scripts/train.py --config configs/training/emoji_autoencoder.yaml --max-time 01:30:00
    python scripts/train.py --config configs/training/emoji_clip.yaml --resume auto train.learning_rate=1e-4
    python scripts/train.py --resume runs/emoji_autoencoder
    python scripts/train.py --config configs/training/text_to_image.yaml --dry-run data.params.path=images

Exit codes: 0 if training finished or ran out of time and wrote model.safetensors; 75 if Ctrl-C, SIGTERM,
SIGHUP or another signal stopped it after saving, to be resumed with --resume; 2 for wrong input, or if
training cannot continue.
"""

import sys
import time
from pathlib import Path

STARTED = time.monotonic()

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import train  # noqa: E402

if __name__ == "__main__":
    sys.exit(train.main(__doc__, started=STARTED))
