"""The benchmarks run, on a tiny model, and print what the documentation says they print."""

import subprocess
import sys
from pathlib import Path

import pytest

from golden_cases import cases

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *arguments: str) -> list[list[str]]:
    """Run a benchmark and return its lines as words."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_startup_times_every_script_and_the_demo_model():
    *scripts, model = run("startup.py", "--repeats", "1", "--limit", "60")
    assert [line[0] for line in scripts] == sorted(path.name for path in (ROOT / "scripts").glob("[!_]*.py"))
    assert all(float(line[1]) > 0 for line in scripts)
    assert model[:3] == ["the", "demo", "model"] and float(model[3]) > 0


@pytest.mark.slow
def test_loading_measures_every_layout(tmp_path: Path):
    config = str(cases("e2e_txt2img")[0].files["config"])
    arguments = ["--config", config, "--folder", str(tmp_path), "--dtypes", "float16"]
    header, *rows = run("loading.py", *arguments, "--layouts", "ckpt", "folder-sharded")
    assert [row[:2] for row in rows] == [["ckpt", "float16"], ["folder-sharded", "float16"]]
    assert all(len(row) == 9 and float(row[3]) > 0 for row in rows)
    assert list(tmp_path.iterdir()) == [], "the files are gone"


@pytest.mark.slow
def test_unet_speed_compares_networks_that_compute_the_same():
    config = str(cases("e2e_txt2img")[0].files["config"])
    arguments = ["--config", config, "--size", "64", "--repeats", "1", "--dtypes", "float32"]
    *_, row = run("unet_speed.py", *arguments)
    assert row[0] == "float32" and float(row[4]) < 1e-4


@pytest.mark.slow
def test_looking_for_nan_costs_less_than_a_hundredth_of_a_step():
    *_, row = run("guard.py", "--config", str(ROOT / "configs/demo/emoji.yaml"), "--size", "128")
    assert row[0] == "float32" and float(row[3].rstrip("%")) < 1


@pytest.mark.slow
def test_batch_variance_finds_none_where_the_networks_see_one_picture_at_a_time():
    files = cases("e2e_txt2img")[0].files
    arguments = ["--config", str(files["config"]), "--ckpt", str(files["checkpoint"]), "--size", "64"]
    _, row = run("batch_variance.py", *arguments, "--steps", "2", "--samplers", "euler_a", "--exact")
    assert row == ["euler_a", "0.0e+00", "0", "0.0e+00"]


@pytest.mark.slow
def test_every_watermark_is_read_and_hard_to_see():
    rows = [" ".join(words) for words in run("watermark.py")]
    own = [row.split("PSNR")[1].split() for row in rows if "(own)" in row]
    assert len(own) == len(rows) / 2 >= 15
    for psnr, _, largest, _, read, *_ in own:
        assert float(psnr) > 40 and int(largest) <= 30 and float(read) == 1
