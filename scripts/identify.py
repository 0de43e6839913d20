"""Report what weights files contain: task, family, eps or v, storage format, and the config they need.

  python scripts/identify.py model.safetensors                    any .ckpt, .pt, .bin, .safetensors or folder
  python scripts/identify.py *.safetensors *.ckpt                 one line each
  python scripts/identify.py v2-1_768.ckpt --json --hash          JSON, with the SHA-256
  python scripts/identify.py v2-1_768.ckpt --probe                detect eps or v by evaluating the UNet once

Only the headers are read, so that large files take no longer, and no code in a file is executed. The exit
code is 2 if any of the files cannot be used.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import identify  # noqa: E402

if __name__ == "__main__":
    sys.exit(identify.main(__doc__))
