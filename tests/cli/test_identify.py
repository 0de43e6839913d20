"""scripts/identify.py, and what other scripts make of a file: YAML, eps or v, right script, digest."""

import hashlib
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from golden_cases import cases, manifest
from ldm.config import find_config, load_config
from ldm.jobs.opening import hint_at_size
from ldm.requests import Sample
from ldm.requests.resolving import ModelFacts
from ldm.tasks import probe
from ldm.tasks.probe import Verdict

CASE = cases("e2e_txt2img")[0]
QUICK = ("--steps", 1, "--H", 16, "--W", 16, "--n_iter", 1, "--n_samples", 1, "--precision", "full")
FLAG_EPS, FLAG_V, SAYS_V = ("--prediction", "eps"), ("--prediction", "v"), {"sd.prediction": "v"}
DEMO = tuple(str(find_config(f"configs/demo/emoji{end}").absolute()) for end in (".safetensors", ".yaml"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch, run):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sparse(layout: str, path, metadata=None):
    """Write a file with the names and shapes of a published layout, and a hole for its values."""
    header, position = {"__metadata__": metadata or {}}, 0
    for name, (shape, _) in manifest(layout).items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path


def tiny(path, metadata=None):
    save_file(load_file(CASE.files["checkpoint"]), path, metadata=metadata)
    return path


def draw(run, checkpoint, *args, config=None):
    config = () if config is None else ("--config", config)
    return run("txt2img.py", "--ckpt", checkpoint, *config, *QUICK, *args)


def refused(outcome, *texts):
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    for text in texts:
        assert text in outcome.err, outcome.err


def test_a_table_of_a_full_size_file_in_no_time(run, tmp_path):
    started = time.process_time()
    outcome = run("identify.py", sparse("v2-1-stable-unclip-h", tmp_path / "unclip.safetensors"))
    assert time.process_time() - started < 20
    assert outcome.code == 0 and not outcome.err
    lines = [line for line in outcome.out.splitlines()[1:] if " note " not in line]
    rows = dict(line.strip().split(maxsplit=1) for line in lines)
    assert rows["is"].startswith("an SD 2.x model for image variations (unCLIP-H)")
    assert rows["predicts"] == "v, the velocity (as all reference models of this kind do)"
    assert rows["config"] == "configs/stable-diffusion/v2-1-stable-unclip-h-inference.yaml"
    assert "UNet 870.2 M" in rows["parameters"] and "3.98 GB" == rows["size"]
    columns = {len(re.match(r"  [a-z0-9 ]{10}  ", line)[0]) for line in outcome.out.splitlines()[1:]}
    assert columns == {14}, "aligned"


@pytest.mark.few(2)
@pytest.mark.parametrize("fault", ["missing", "misshapen", "unexpected", "integers"])
def test_what_loading_refuses_is_refused(run, tmp_path, fault):
    demo = load_file(DEMO[0])
    name = next(name for name in demo if name.startswith("model.") and demo[name].ndim == 4)
    x = demo.pop(name)
    demo |= {
        "missing": {}, "misshapen": {name: x[:, :1].contiguous()}, "integers": {name: x.int()},
        "unexpected": {name: x, name + "_2": x.clone()},
    }[fault]
    shutil.copy(DEMO[1], tmp_path / "a.yaml")
    for file in Path(DEMO[1]).parent.glob("emoji*.[jg]*"):
        shutil.copy(file, tmp_path)
    save_file(demo, tmp_path / "a.safetensors")
    asked, drawn = run("identify.py", tmp_path / "a.safetensors"), draw(run, tmp_path / "a.safetensors")
    refused(asked, name, "1 unexpected" if fault == "unexpected" else "1 mis")
    assert asked.err == drawn.err and not asked.out


def test_eps_or_v_is_said_to_be_open(run, tmp_path):
    outcome = run("identify.py", sparse("v2-inference", tmp_path / "a.safetensors"))
    assert "eps or v: the file does not say" in outcome.out
    assert "v2-inference.yaml or v2-inference-v.yaml" in outcome.out


def test_json_has_stable_keys(run, tmp_path):
    outcome = run("identify.py", "--json", sparse("v1-inference", tmp_path / "a.safetensors"))
    record = json.loads(outcome.out)
    assert list(record) == [
        "kind", "family", "task", "prediction", "prediction_source", "weights", "layout", "variant",
        "in_channels", "context_width", "rank", "vectors", "parameters", "dtypes", "config", "lacks", "notes",
        "path", "container", "bytes", "sha256", "training_size", "is",
    ]  # fmt: skip
    assert record["config"] == "configs/stable-diffusion/v1-inference.yaml" and record["sha256"] is None


def test_several_files_a_line_each_and_failures_among_them(run, tmp_path):
    (tmp_path / "page.ckpt").write_text("<html>")
    good = tiny(tmp_path / "good.safetensors")
    outcome = run("identify.py", good, tmp_path / "page.ckpt", tmp_path / "nowhere")
    refused(outcome, "2 of 3 files")
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines] == ["good.safetensors", "page.ckpt", "nowhere"]
    assert "a model of context width 8" in lines[0] and "HTML page" in lines[1] and "no such file" in lines[2]
    outcome = run("identify.py", "--json", good, tmp_path / "page.ckpt")
    assert [record.get("error_kind") for record in json.loads(outcome.out)] == [None, "NotACheckpointError"]
    assert outcome.code == 2


def test_one_file_that_fails_is_one_line(run, tmp_path):
    (tmp_path / "page.ckpt").write_text("<html>")
    outcome = run("identify.py", tmp_path / "page.ckpt")
    refused(outcome, "HTML page")
    assert not outcome.out


def test_the_digest_is_computed_when_asked_for_and_shown_ever_after(run, tmp_path):
    file = tiny(tmp_path / "a.safetensors")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest not in run("identify.py", file).out
    assert digest in run("identify.py", file, "--hash").out
    assert digest in run("identify.py", file).out


def test_the_probe_tells_and_is_not_run_twice(run, tmp_path, monkeypatch):
    file = sparse("v2-inference", tmp_path / "a.safetensors")
    monkeypatch.setattr("ldm.loading.load_model", lambda *args, **options: None)
    monkeypatch.setattr(probe, "probe_prediction", lambda *args: Verdict("v", 0.4, 0.9))
    record = json.loads(run("identify.py", "--json", "--probe", file).out)
    assert (record["prediction"], record["prediction_source"]) == ("v", "probe")
    assert record["config"] == "configs/stable-diffusion/v2-inference-v.yaml"
    monkeypatch.setattr(probe, "probe_prediction", lambda *args: pytest.fail("again"))
    assert json.loads(run("identify.py", "--json", "--probe", file).out) == record


def test_a_model_that_no_step_tells_apart_stays_open(run, tmp_path, monkeypatch):
    file = sparse("v2-inference", tmp_path / "a.safetensors")
    monkeypatch.setattr("ldm.loading.load_model", lambda *args, **options: None)
    monkeypatch.setattr(probe, "probe_prediction", lambda *args: Verdict(None, 0.1, 0.2))
    out = run("identify.py", "--probe", file).out
    assert "did not tell eps from v (0.10 with eps, 0.20 with v)" in out and "eps or v:" in out


def test_the_demo_model_s_yaml_is_compared_with_what_it_predicts(run, tmp_path):
    file = tmp_path / "emoji.safetensors"       # as it would be if it did not say so
    save_file(load_file(DEMO[0]), file)
    outcome = draw(run, file, config=DEMO[1])
    assert outcome.code == 0 and "v-prediction (found by one UNet evaluation; agreement 0.8" in outcome.out
    text = Path(DEMO[1]).read_text().replace("parameterization: v", "parameterization: eps")
    (tmp_path / "wrong.yaml").write_text(text)
    for beside in ("emoji_clip.json", "emoji_bpe.txt.gz"):
        shutil.copy(Path(DEMO[1]).parent / beside, tmp_path)
    outcome = draw(run, file, "--outdir", "o", config=tmp_path / "wrong.yaml")
    refused(outcome, "emoji.safetensors predicts v (found by one UNet evaluation", "wrong.yaml asks for eps")
    assert "parameterization: v" in outcome.err and "scripts/convert.py" in outcome.err
    assert not (tmp_path / "o").exists()
    outcome = draw(run, file, "--prediction", "eps", config=DEMO[1])
    refused(outcome, "predicts v", "--prediction asks for eps")
    outcome = draw(run, DEMO[0], config=tmp_path / "wrong.yaml")
    refused(outcome, "emoji.safetensors predicts v (its metadata say so)", "wrong.yaml asks for eps")


def test_random_weights_are_taken_at_the_yaml_s_word(run, tmp_path):
    outcome = draw(run, tiny(tmp_path / "a.safetensors"), config=CASE.files["config"])
    assert outcome.code == 0
    assert "eps-prediction (base.yaml says so; one UNet evaluation did not tell)" in outcome.out


def test_metadata_against_yaml_and_flag(run, tmp_path):
    file = tiny(tmp_path / "a.safetensors", {"sd.prediction": "v"})
    outcome = draw(run, file, config=CASE.files["config"])
    refused(outcome, "a.safetensors predicts v (its metadata say so)", "base.yaml asks for eps")
    refused(draw(run, file, "--prediction", "eps"), "predicts v (its metadata", "--prediction asks for eps")
    file = tiny(tmp_path / "b.safetensors")
    outcome = draw(run, file, "--prediction", "v", config=CASE.files["config"])
    refused(outcome, "--prediction v, but", "says eps")


def test_metadata_spare_the_probe(run, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "probe_prediction", lambda *args: pytest.fail("probed"))
    file = tiny(tmp_path / "a.safetensors", {"sd.prediction": "eps"})
    outcome = draw(run, file, config=CASE.files["config"])
    assert outcome.code == 0 and "eps-prediction (its metadata say so)" in outcome.out


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """Let a sparse full-size file load as the tiny model, so that what is chosen for it can be seen."""

    def pretend(layout, verdict, metadata=None):
        from ldm import loading

        original, seen = loading.load_model, []

        def load_model(config, checkpoint, **options):
            node = config if isinstance(config, dict) else load_config(config)
            seen.append(node["model"]["params"].get("parameterization", "eps"))
            model = original(CASE.files["config"], CASE.files["checkpoint"], device="cpu", dtype="float32")
            model.parameterization = seen[-1]
            return model

        monkeypatch.setattr(loading, "load_model", load_model)
        monkeypatch.setattr(probe, "probe_prediction", lambda *args: Verdict(verdict, 0.9, 0.9))
        digest = "ldm.files.digest.sha256_in_background"
        monkeypatch.setattr(digest, lambda path: lambda: "of 2 GB of nothing")
        return sparse(layout, tmp_path / "full.safetensors", metadata), seen

    return pretend


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("layout", "verdict", "metadata", "flags", "config", "predicts"),
    [
        ("v2-inference", "eps", {}, (), "v2-inference.yaml", "eps-prediction (found by one"),
        ("v2-inference-v", "v", {}, (), "v2-inference-v.yaml", "v-prediction (found by one"),
        ("v2-inference-v", None, {}, FLAG_V, "v2-inference-v.yaml", "v-prediction (--prediction"),
        ("v2-inference", None, {}, FLAG_EPS, "v2-inference.yaml", "eps-prediction (--prediction"),
        ("v2-inference", None, SAYS_V, (), "v2-inference-v.yaml", "v-prediction (its metadata"),
        ("v1-inference", None, {}, (), "v1-inference.yaml", "eps-prediction (v1-inference.yaml says so"),
        ("v1-inference", "eps", {}, (), "v1-inference.yaml", "eps-prediction (found by one"),
        ("v1-inference", "v", {}, (), "v1-inference.yaml", "v-prediction (found by one"),
        ("v1-inference", None, SAYS_V, (), "v1-inference.yaml", "v-prediction (its metadata"),
    ],
)
def test_the_yaml_is_picked_from_the_file(run, pretend, layout, verdict, metadata, flags, config, predicts):
    file, _ = pretend(layout, verdict, metadata)
    outcome = draw(run, file, *flags)
    assert outcome.code == 0, outcome.err
    family = "1.x" if layout.startswith("v1") else "2.x"
    assert f"config: {config} (the file is an SD {family} model for text-to-image" in outcome.out
    assert predicts in outcome.out


def test_without_a_clue_sd_2_asks(run, pretend, tmp_path):
    file, _ = pretend("v2-inference", None)
    outcome = draw(run, file, "--outdir", "o")
    refused(outcome, "give --prediction eps or --prediction v", "an SD 2.x model for text-to-image")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("config", ["v2-inference.yaml", "v2-inference-v.yaml"])
def test_the_other_published_yaml_is_named(run, pretend, config):
    right = "v" if config == "v2-inference.yaml" else "eps"
    other = {"v": "v2-inference-v.yaml", "eps": "v2-inference.yaml"}[right]
    file, _ = pretend("v2-inference", right)
    outcome = draw(run, file, config=f"configs/stable-diffusion/{config}")
    refused(outcome, f"full.safetensors predicts {right} (found by one")
    assert f"give --config configs/stable-diffusion/{other}" in outcome.err


@pytest.mark.parametrize(
    ("layout", "script"),
    [
        ("v2-inpainting", "scripts/inpaint.py"),
        ("v2-midas", "scripts/depth2img.py"),
        ("x4-upscaling", "scripts/upscale.py"),
        ("v2-1-stable-unclip-l", "scripts/unclip.py"),
    ],
)
def test_models_of_other_tasks_are_sent_to_their_script(run, tmp_path, layout, script):
    refused(draw(run, sparse(layout, tmp_path / "full.safetensors")), script)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"lora_unet_x_attn2_to_k.lora_down.weight": (8, 768)}, "is a LoRA for SD 1.x, no model"),
        ({"encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3)}, "is a VAE alone; --ckpt takes a whole"),
        ({"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)}, "is a ControlNet"),
        ({"conditioner.embedders.1.model.x": (8, 8)}, "is an SDXL model; this program runs"),
        ({"emb_params": (2, 768)}, "is a textual-inversion embedding for SD 1.x, no model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "takes a whole model: UNet, VAE"),
    ],
)
def test_what_is_no_model_is_named_in_a_sentence(run, tmp_path, tensors, says):
    file = tmp_path / "a.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    refused(draw(run, file), says)


def test_a_digest_that_differs_stops_everything(run, tmp_path):
    file = tiny(tmp_path / "a.safetensors")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    config = CASE.files["config"]
    assert draw(run, file, "--sha256", digest.upper(), config=config).code == 0
    refused(draw(run, file, "--sha256", "0" * 64, "--outdir", "o", config=config), digest, "0" * 64)
    refused(draw(run, file, "--sha256", "abc", config=config), "64 hexadecimal digits")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("flags", [("--sha256", "0" * 64), ("--prediction", "v"), ("--weights", "ema")])
def test_flags_about_weights_need_weights(run, flags):
    refused(run("txt2img.py", *flags), flags[0], "--ckpt")


def test_nan_weights_are_refused_unless_allowed(run, tmp_path):
    tensors = load_file(CASE.files["checkpoint"])
    tensors["first_stage_model.decoder.conv_in.bias"][0] = torch.nan
    save_file(tensors, tmp_path / "a.safetensors")
    refused(draw(run, tmp_path / "a.safetensors", config=CASE.files["config"]), "NaN")
    outcome = draw(run, tmp_path / "a.safetensors", "--allow-nonfinite", config=CASE.files["config"])
    assert "loaded all the same" in outcome.err


def test_a_size_far_from_training_is_hinted_at(caplog):
    def hint(height, width, trained, known=True):
        facts = ModelFacts(native_size=trained, training_size=trained, latent_channels=4, latent_factor=8)
        opened = SimpleNamespace(facts=facts, knows_size=known)
        hint_at_size(Sample(height=height, width=width), opened)

    with caplog.at_level("INFO", "ldm"):
        for size in ((512, 512, 512), (512, 768, 512), (768, 512, 768), (64, 64, 512, False)):
            hint(*size)
        assert not caplog.records
        hint(512, 512, 768)
        assert "768x768, the training size of this model: try --H 768 --W 768" in caplog.text
