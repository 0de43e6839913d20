"""scripts/merge.py as a command: one file out, that loads; wrong input is one line and writes nothing."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from golden_cases import cases
from ldm import load_model

FILES = cases("e2e_txt2img")[0].files
CONV = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture
def models(tmp_path):
    """Return the tiny complete model and two that were changed a little, one of them a training file."""
    stored = load_file(FILES["checkpoint"])
    a = {name: x.float() if x.is_floating_point() else x for name, x in stored.items()}
    b = {name: x * 1.125 if x.is_floating_point() else x for name, x in a.items()}
    c = {name: x * 0.875 if x.is_floating_point() else x for name, x in a.items()}
    paths = [tmp_path / "a.safetensors", tmp_path / "b.ckpt", tmp_path / "c.safetensors"]
    save_file(a, paths[0], metadata={"sd.prediction": "eps"})
    torch.save({"state_dict": b, "global_step": 7, "epoch": 1}, paths[1])
    save_file(c, paths[2])
    return paths


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_weighted_sum_is_a_model_that_loads(run, models, tmp_path):
    outcome = run("merge.py", *models[:2], "--alpha", 0.5)
    assert outcome.code == 0, outcome.err
    out = tmp_path / "outputs" / "merged" / "a-b-0.5.safetensors"
    assert f"wrote {out.relative_to(tmp_path)}" in outcome.out
    a, result = load_file(models[0]), load_file(out)
    assert list(result) and result.keys() == a.keys()
    for name, x in a.items():
        floating = x.is_floating_point() and "." in name
        torch.testing.assert_close(result[name], x * 1.0625 if floating else x, rtol=1e-6, atol=0)
    load_model(FILES["config"], out, device="cpu", dtype="float32")

    about = metadata(out)
    recipe = json.loads(about["sd.merge"])
    assert about["sd.prediction"] == "eps" and about["sd.weights"] == "raw"
    assert (recipe["mode"], recipe["alpha"]) == ("weighted-sum", 0.5)
    assert [x["sha256"] for x in recipe["inputs"]] == [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest()} for path in models[:2]
    ]


def test_the_inpainting_recipe(run, models, tmp_path):
    a = load_file(models[0])
    a[CONV] = torch.cat([a[CONV], torch.randn(a[CONV].shape[0], 5, 3, 3)], dim=1)
    save_file(a, tmp_path / "inpainting.safetensors")
    out = tmp_path / "out.safetensors"
    files = tmp_path / "inpainting.safetensors", models[1], models[2]
    outcome = run("merge.py", *files, "--alpha", 1, "--mode", "add-difference", "--out", out)
    assert outcome.code == 0, outcome.err
    assert "inpainting.safetensors has 9 input channels, b.ckpt and c.safetensors 4" in outcome.out
    result = load_file(out)
    assert torch.equal(result[CONV][:, 4:], a[CONV][:, 4:])
    torch.testing.assert_close(result[CONV][:, :4], a[CONV][:, :4] * 1.25)


def test_dtype_and_autoencoder(run, models, tmp_path):
    out = tmp_path / "out.safetensors"
    flags = "--alpha", 0, "--dtype", "float16", "--vae", models[2], "--out", out, "--quiet"
    outcome = run("merge.py", *models[:2], *flags)
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    a, c, result = load_file(models[0]), load_file(models[2]), load_file(out)
    for name, x in result.items():
        expected = (c if name.startswith("first_stage_model.") else a)[name]
        assert torch.equal(x, expected.half() if expected.is_floating_point() else expected)
    assert json.loads(metadata(out)["sd.merge"])["vae"] == "c.safetensors"


def test_what_is_there_is_only_replaced_when_asked(run, models, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    flags = (*models[:2], "--alpha", 1, "--out", out)
    outcome = run("merge.py", *flags)
    assert outcome.code == 2
    assert outcome.err == f"error: {out} already exists; give another --out, or --overwrite\n"
    assert out.read_bytes() == b"old"
    assert run("merge.py", *flags, "--overwrite").code == 0
    b = torch.load(models[1], weights_only=True)["state_dict"]
    assert all(torch.equal(x, b[name]) for name, x in load_file(out).items() if "." in name)

    before = models[0].read_bytes()
    outcome = run("merge.py", *models[:2], "--alpha", 1, "--out", models[0], "--overwrite")
    assert outcome.code == 2
    assert "is also read from; give the result another name" in outcome.err
    assert models[0].read_bytes() == before


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "flags, message",
    [
        (("--alpha", 2), "alpha is 2.0; expected 0 to 1"),
        (("--alpha", 1, "--mode", "add-difference"), "add-difference takes 3 models, got 2"),
        (("--alpha", "x"), "argument --alpha: got 'x', expected a number; see --help"),
        (("--alpha", 1, "--parts", "unet,clip"), "got 'unet,clip', expected some of unet,vae,text"),
        (("--alpha", 1, "--out", "a.ckpt"), "--out a.ckpt: only .safetensors files can be written"),
        (("--alpha", 1, "--parts", "vae", "--vae", "x"), "--vae replaces the VAE and --parts vae"),
        (("--alpha", 1, "--weights", "ema"), "holds no EMA weights; use --weights raw"),
        ((), "the following arguments are required: --alpha"),
    ],
)
def test_wrong_flags_are_one_line(run, models, tmp_path, flags, message):
    before = sorted(tmp_path.rglob("*"))
    outcome = run("merge.py", *models[:2], *flags)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert message in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_that_are_no_numbers_leave_nothing_behind(run, models, tmp_path):
    b = torch.load(models[1], weights_only=True)["state_dict"]
    b["first_stage_model.post_quant_conv.bias"][0] = torch.nan
    torch.save(b, models[1])
    out = tmp_path / "out.safetensors"
    outcome = run("merge.py", *models[:2], "--alpha", 0.5, "--out", out)
    assert outcome.code == 2
    assert "b.ckpt: first_stage_model.post_quant_conv.bias holds NaN or infinite values" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.ckpt", "c.safetensors"]


def test_help_is_there_at_once(run_alone):
    outcome = run_alone("merge.py", "--help")
    assert outcome.code == 0 and "--mode {weighted-sum,add-difference}" in outcome.out


def test_a_verdict_that_is_remembered_keeps_eps_from_v(run, models, tmp_path, monkeypatch):
    from ldm.files import cache
    from ldm.tasks.probe import METHOD

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    note = {"agreement_eps": 0.1, "agreement_v": 0.9, "prediction": "v", "method": METHOD}
    cache.put(models[1], "prediction", note)
    outcome = run("merge.py", *models[:2], "--alpha", 0.5)
    assert outcome.code == 2 and "b.ckpt predicts v" in outcome.err, outcome.err
    assert not (tmp_path / "outputs").exists()
    outcome = run("convert.py", models[1], tmp_path / "out.safetensors")
    assert outcome.code == 0 and "prediction v" in outcome.out, outcome.err
    assert metadata(tmp_path / "out.safetensors")["sd.prediction"] == "v"
