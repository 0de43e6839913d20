"""Measure the start-up time: until a script prints its help, and until sampling can begin.

    python benchmarks/startup.py
    python benchmarks/startup.py --against ../before        # alternates with another checkout

There is one line per script, for `--help`, and one for `ldm.load_model` of the demo model, which includes
Python, torch, the networks and their weights. Each is run once to warm the file cache and then `--repeats`
times, and the median is printed. The exit code is 1 if a script's help takes longer than `--limit` seconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = "the demo model"
LOAD = "import ldm; ldm.load_model('configs/demo/emoji.yaml', 'configs/demo/emoji.safetensors', 'cpu')"


def seconds(checkout: Path, what: str) -> float:
    """Return the wall time of one script's help, or of loading the demo model."""
    command = ["-c", LOAD] if what == MODEL else [str(checkout / "scripts" / what), "--help"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=0.5, help="seconds the median of a help may take")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="other checkouts to measure too")
    args = parser.parse_args()
    slow = False
    checkouts = [ROOT, *(path.resolve() for path in args.against)]
    scripts = sorted(path.name for path in (ROOT / "scripts").glob("*.py") if path.name != "__init__.py")
    for what in [*scripts, MODEL]:
        rounds = [[seconds(checkout, what) for checkout in checkouts] for _ in range(1 + args.repeats)]
        for checkout, times in zip(checkouts, zip(*rounds[1:], strict=True), strict=True):
            median = statistics.median(times)
            slow |= what != MODEL and checkout == ROOT and median > args.limit
            where = "" if checkout == ROOT else f"   in {checkout}"
            print(f"{what:20s} {median:.3f} s   ({min(times):.3f} to {max(times):.3f}){where}")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
