"""Train an autoencoder, a diffusion model or a small CLIP.

    python scripts/train.py --config configs/training/emoji_autoencoder.yaml --max-time 01:30:00
    python scripts/train.py --config configs/training/emoji_clip.yaml --resume auto train.learning_rate=1e-4
    python scripts/train.py --resume runs/emoji_autoencoder
    python scripts/train.py --config configs/training/text_to_image.yaml --dry-run

Exit codes: 0 if training finished or ran out of time and wrote model.safetensors; 75 if SIGTERM, SIGUSR1 or
Ctrl-C stopped it after saving, to be resumed with --resume; 2 for wrong input, or if training cannot
continue.
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
    """A parser that also accepts key=value between the flags."""

    parse_args = Parser.parse_intermixed_args


def make_parser() -> Parser:
    parser = TrainParser(description=__doc__)
    add = parser.add_argument
    add("--config", help="training configuration; with --resume RUN, that run's own by default")
    add("--run", help="folder of the run; default runs/NAME, with a number appended if it exists")
    add("--resume", metavar="RUN", help='resume the run in this folder, or "auto": the newest, if any')
    add(
        "--max-time", default="", metavar="TIME", help="stop after this wall-clock time, seconds or HH:MM:SS"
    )
    add("--dry-run", action="store_true", help="print the resolved configuration and exit")
    add("overrides", nargs="*", metavar="key=value", help="overrides, such as train.batch_size=8")
    add_messages(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli import training

    training.run(args, STARTED)


if __name__ == "__main__":
    app.run(make_parser(), main)
