"""--vae: another file's autoencoder in the place of the checkpoint's."""

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from golden_cases import case

BASE = case("e2e_txt2img_ddim").files
QUICK = ("--steps", 1, "--H", 16, "--W", 16, "--n_iter", 1, "--n_samples", 1, "--precision", "full")
WEIGHTS = ("--config", BASE["config"], "--ckpt", BASE["checkpoint"])


def test_another_autoencoder_decodes(run, tmp_path):
    stored = load_file(BASE["checkpoint"])
    names = [name for name in stored if name.startswith("first_stage_model.")]
    vae = {name.removeprefix("first_stage_model."): stored[name].clone() for name in names}
    save_file(vae, tmp_path / "same.safetensors")
    vae["decoder.conv_out.bias"] += 1
    save_file(vae, tmp_path / "bright.safetensors")
    shown = {}
    for name in ("own", "same", "bright"):
        flags = () if name == "own" else ("--vae", tmp_path / f"{name}.safetensors")
        outcome = run("txt2img.py", *QUICK, *WEIGHTS, *flags, "--outdir", tmp_path / name)
        assert outcome.code == 0, outcome.err
        with Image.open(tmp_path / name / "samples" / "00000.png") as image:
            shown[name] = image.tobytes()
            assert ("bright.safetensors" in str(image.info)) == (name == "bright")
    assert shown["own"] == shown["same"] and sum(shown["bright"]) > sum(shown["own"])


def test_a_file_without_one_is_refused(run, tmp_path):
    file = tmp_path / "unet.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, file)
    outcome = run("txt2img.py", *QUICK, *WEIGHTS, "--vae", file, "--outdir", tmp_path / "o")
    assert outcome.code == 2 and "holds no weights of the VAE" in outcome.err
    assert not (tmp_path / "o").exists()
