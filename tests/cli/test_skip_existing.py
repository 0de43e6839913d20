"""--skip-existing: a command that was killed makes only what is missing, and the same images."""

import pytest

from golden_cases import cases
from ldm.imaging import metadata

CASE = cases("e2e_txt2img")[0]
FLAGS = ("--config", CASE.files["config"], "--ckpt", CASE.files["checkpoint"], "--prompt", "a cat")
FLAGS += ("--steps", 2, "--H", 64, "--W", 64, "--n_iter", 3, "--n_samples", 2, "--scale", 3)


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted((folder / "samples").iterdir())}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--sampler", "euler_a", "--fixed_code"),
        ("--rng", "per-image", "--sampler", "ddpm"),
        ("--hires", 1.5, "--hires-strength", 0.9, "--sampler", "euler_a"),
    ],
    ids=["reference", "noise-in-steps", "per-image", "two-passes"],
)
def test_missing_images_are_made_and_are_the_same(run, tmp_path, options):
    outcome = run("txt2img.py", *FLAGS, *options, "--outdir", "o")
    assert outcome.code == 0, outcome.err
    whole = contents(tmp_path / "o")
    for name in ("00002.png", "00003.png", "00004.png"):  # batch 1, and half of batch 2
        (tmp_path / "o" / "samples" / name).unlink()
    (tmp_path / "o" / "grid-0000.png").rename(tmp_path / "grid.png")
    outcome = run("txt2img.py", *FLAGS, *options, "--outdir", "o", "--skip-existing")
    assert outcome.code == 0 and "3 images of this command had been saved before" in outcome.out
    assert sorted(contents(tmp_path / "o").values()) == sorted(whole.values())
    assert len(list((tmp_path / "o").glob("grid-*.png"))) == 1


def test_all_there_is_nothing_to_do(run, tmp_path):
    command = "txt2img.py", *FLAGS, "--outdir", "o", "--skip-existing"
    assert run(*command).code == 0
    before = contents(tmp_path / "o")
    outcome = run(*command)
    assert outcome.code == 0 and "6 images of this command had been saved before" in outcome.out
    assert contents(tmp_path / "o") == before and len(list((tmp_path / "o").glob("grid-*"))) == 1
    outcome = run(*command, "--n_iter", 4)
    assert outcome.code == 0 and len(contents(tmp_path / "o")) == 8


def test_another_request_and_a_damaged_image_are_not_skipped(run, tmp_path):
    assert run("txt2img.py", *FLAGS, "--outdir", "o").code == 0
    first = tmp_path / "o" / "samples" / "00000.png"
    first.write_bytes(first.read_bytes()[:-100])
    outcome = run("txt2img.py", *FLAGS, "--outdir", "o", "--skip-existing")
    assert outcome.code == 0 and "5 images of this command had been saved before" in outcome.out
    for change in (("--seed", 7), ("--prompt", "a dog"), ("--steps", 3)):
        outcome = run("txt2img.py", *FLAGS, *change, "--n_iter", 1, "--outdir", "o", "--skip-existing")
        assert outcome.code == 0 and "exist already" not in outcome.out


def test_images_without_metadata_cannot_be_identified(run):
    outcome = run("txt2img.py", *FLAGS, "--skip-existing", "--no-metadata")
    assert outcome.code == 2 and "leave --no-metadata out" in outcome.err


def test_the_grid_names_all_prompts_and_decoding_latents_is_no_repetition(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog")
    command = "txt2img.py", *FLAGS[:4], *FLAGS[6:], "--n_iter", 1, "--from-file", "prompts.txt"
    command += "--save-latents", "--outdir", "o", "--skip-existing"
    assert run(*command).code == 0
    (tmp_path / "o" / "samples" / "00001.png").unlink()
    assert run(*command).code == 0
    assert metadata.read_record(tmp_path / "o" / "grid-0001.png")["prompt"] == "a cat\na dog"
    outcome = run("txt2img.py", "--latents", tmp_path / "o" / "samples" / "00000.latents.safetensors")
    assert outcome.code == 0 and "1 file in o" in outcome.out
