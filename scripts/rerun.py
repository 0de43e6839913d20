"""Make images again from their own metadata, and compare them with the originals.

  python scripts/rerun.py outputs/txt2img-samples/samples/00000.png
  python scripts/rerun.py old/*.png --files weights photos
  python scripts/rerun.py 00000.png --with seed=7 scale=5

Each image is reported as equal, near (largest difference up to 3 of 255: another device rounds differently)
or different; weights and inputs that are missing or have changed are named. The exit code is 0, 1 if an image
is different, or 2 if one could not be made.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import rerun  # noqa: E402

if __name__ == "__main__":
    sys.exit(rerun.main(__doc__))
