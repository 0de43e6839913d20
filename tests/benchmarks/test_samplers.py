"""The plot of the samplers is drawn, here with few evaluations, and its table names every sampler."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ldm.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_errors_of_all_samplers_are_printed_and_drawn(tmp_path: Path):
    picture = tmp_path / "samplers.png"
    command = [sys.executable, str(ROOT / "benchmarks" / "samplers.py"), "--out", str(picture)]
    command += ["--evaluations", "4", "8", "--samples", "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    header, *rows = (line.split() for line in done.stdout.splitlines())
    errors = {row[0]: [float(error) for error in row[1:]] for row in rows if row[0] in SAMPLERS}
    assert header == ["sampler", "4", "8"] and set(errors) == set(SAMPLERS)
    assert errors["euler"][1] < errors["euler"][0] < 1
    with Image.open(picture) as image:
        assert image.size[0] > 1000


def test_the_page_lists_every_sampler_with_its_defaults():
    page = (ROOT / "docs" / "SAMPLERS.md").read_text()
    lines = (line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 7)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = {row[0].strip("`"): row for row in rows if row[0] != "`--sampler`"}
    assert set(table) == set(SAMPLERS)
    for name, row in SAMPLERS.items():
        spacing = row.cls.default_spacing or row.cls.count_exact_spacing
        assert spacing is None or table[name][4] == f"`{spacing}`"
        eta = row.cls.default_eta
        assert table[name][3] == ("noisy" if name in ("ddpm", "lcm") else "-" if eta is None else f"{eta:g}")
