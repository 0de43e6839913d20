"""Measure how long `python scripts/NAME.py --help` takes: the time a user waits before anything is said.

    python benchmarks/startup.py

Each script is run once to warm the file cache and then `--repeats` times; the median is printed. The exit
code is 1 when a script takes longer than `--limit` seconds.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def seconds(script: Path) -> float:
    """Return the wall time of one `--help`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, str(script), "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=0.5, help="seconds a median may take")
    args = parser.parse_args()
    slow = False
    for script in sorted(path for path in SCRIPTS.glob("*.py") if path.name != "__init__.py"):
        seconds(script)
        times = [seconds(script) for _ in range(args.repeats)]
        median = statistics.median(times)
        slow |= median > args.limit
        print(f"{script.name:20s} {median:.3f} s   ({min(times):.3f} to {max(times):.3f})")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
