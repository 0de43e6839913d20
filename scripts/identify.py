"""Say what weights files are: what for, which family, eps or v, how stored, and the config they need.

  python scripts/identify.py model.safetensors                    any .ckpt, .pt, .bin, .safetensors or folder
  python scripts/identify.py *.safetensors *.ckpt                 a line each
  python scripts/identify.py v2-1_768.ckpt --json --hash          for programs; with the SHA-256
  python scripts/identify.py v2-1_768.ckpt --probe                eps or v by one step of the network

Weights are not read, so it takes no longer for 5 GB, and nothing in a file is executed.
Exit code 2 if any of the files cannot be used.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import identify  # noqa: E402

if __name__ == "__main__":
    sys.exit(identify.main(__doc__))
