"""Train an autoencoder, a diffusion model or a small CLIP.

    python scripts/train.py --config configs/training/emoji_autoencoder.yaml --max-time 01:30:00
    python scripts/train.py --config configs/training/emoji_clip.yaml --resume auto train.learning_rate=1e-4
    python scripts/train.py --resume runs/emoji_autoencoder
    python scripts/train.py --config configs/training/text_to_image.yaml --dry-run

Exit code: 0 finished or out of time, with model.safetensors written; 75 stopped by SIGTERM, SIGUSR1 or Ctrl-C
after saving, to go on with --resume; 2 wrong input, or training that cannot go on.
"""

import sys
import time
from argparse import Namespace
from pathlib import Path

STARTED = time.monotonic()

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app  # noqa: E402
from ldm.cli.parser import Parser, add_messages  # noqa: E402


class TrainParser(Parser):
    """A parser that takes key=value between the flags too."""

    parse_args = Parser.parse_intermixed_args


def make_parser() -> Parser:
    parser = TrainParser(description=__doc__)
    add = parser.add_argument
    add("--config", help="training configuration; with --resume RUN, that run's own by default")
    add("--run", help="folder of the run; default runs/NAME, with a number added when it is taken")
    add("--resume", metavar="RUN", help='go on with this run folder, or with the newest, if any: "auto"')
    add(
        "--max-time", default="", metavar="TIME", help="end after so many seconds, or HH:MM:SS, of wall clock"
    )
    add("--dry-run", action="store_true", help="print the resolved configuration and end")
    add("overrides", nargs="*", metavar="key=value", help="such as train.batch_size=8")
    add_messages(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli import training

    training.run(args, STARTED)


if __name__ == "__main__":
    app.run(make_parser(), main)
