"""--rng and --exact: each image carries the seed that makes it again, bit for bit."""

import numpy as np
import pytest
from PIL import Image

from golden_cases import cases
from ldm.imaging import metadata

CASE = cases("e2e_txt2img")[0]
FLAGS = ("--precision", "full", "--config", CASE.files["config"], "--ckpt", CASE.files["checkpoint"])
SMALL = ("--H", 16, "--W", 32, "--steps", 2, "--sampler", "euler_a", "--no-grid", *FLAGS)


def files(outdir) -> list:
    return sorted((outdir / "samples").iterdir())


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", ["per-image", "gpu-philox"])
def test_the_seed_in_an_image_makes_it_again_alone(run, tmp_path, rng):
    (tmp_path / "p.txt").write_text("a red apple\na cat\na dog\n")
    kind = ("--rng", rng, "--exact", *SMALL)
    batch = ("--from-file", "p.txt", "--seed", 11, "--n_samples", 2, "--n_iter", 2)
    assert run("txt2img.py", *batch, *kind, "--outdir", "many").code == 0
    records = [metadata.read_record(file) for file in files(tmp_path / "many")]
    assert [record["seed"] for record in records] == [11, 12, 13, 14, 15, 16]
    made_by = {"rng": rng, "exact": True, "seed": 11}
    assert all(made_by.items() <= record["resolved"].items() for record in records)
    chosen = records[4]
    one = ("--prompt", chosen["prompt"], "--seed", chosen["seed"], "--n_samples", 1, "--n_iter", 1)
    assert run("txt2img.py", *one, *kind, "--outdir", "one").code == 0
    (again,) = files(tmp_path / "one")
    assert np.array_equal(pixels(again), pixels(files(tmp_path / "many")[4]))


def test_by_default_the_record_holds_the_seed_of_the_run(run, tmp_path):
    flags = ("--seed", 11, "--n_samples", 2, "--n_iter", 1, "--outdir", "out")
    assert run("txt2img.py", *flags, *SMALL).code == 0
    records = [metadata.read_record(file) for file in files(tmp_path / "out")]
    assert [(r["seed"], r["index_in_batch"], r["resolved"]["rng"]) for r in records] == [
        (11, 0, "reference"),
        (11, 1, "reference"),
    ]
    assert "exact" not in records[0]["request"]


@pytest.mark.parametrize("script", ["txt2img.py", "img2img.py"])
def test_seeds_beyond_the_last_are_refused_before_the_model_is_read(run, tmp_path, script):
    flags = ["--rng", "per-image", "--seed", 2**32 - 2, "--n_samples", 3, "--n_iter", 1, "--outdir", "out"]
    outcome = run(script, *flags, "--ckpt", "no-such-file")
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "error: the 3 images of this run would have the seeds 4294967294 to 4294967296: expected 0 to "
        "4294967295; choose a smaller seed"
    ]
    assert not (tmp_path / "out").exists()


def test_fixed_code_says_where_images_will_be_the_same(run):
    flags = ("--rng", "per-image", "--fixed_code", "--n_samples", 2, "--n_iter", 1, "--outdir", "out")
    outcome = run("txt2img.py", *flags, *SMALL)
    assert outcome.code == 0 and "all images of one prompt will be the same" in outcome.err
