"""Folders that diffusers writes are opened whole or by part, and nothing leads out of them."""

import json
import logging
import shutil

import pytest
import torch
from checkpoint_files import same
from safetensors.torch import load_file, save_file

from golden_cases import case
from ldm.checkpoint import load_checkpoint
from ldm.checkpoint.layouts import UNUSED, ldm_to_parts, to_ldm
from ldm.checkpoint.opened import open_weights
from ldm.checkpoint.sniff import Container
from ldm.config import instantiate, load_config
from ldm.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError, UnsafeCheckpointError
from ldm.loading import load_model
from ldm.loading.match import match_keys

YAML = case("e2e_txt2img_ddim").files["config"]
SAVED = {
    "safetensors": {},
    "bin": {"safe_serialization": False},
    "fp16": {"variant": "fp16"},
    "sharded": {"max_shard_size": "100KB"},
    "sharded bin": {"max_shard_size": "100KB", "safe_serialization": False},
    "sharded fp16": {"max_shard_size": "100KB", "variant": "fp16"},
}


@pytest.fixture(scope="module")
def theirs():
    """Return a pipeline of diffusers' own of the sizes of the golden configuration."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), use_linear_projection=True,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4, layers_per_block=1, norm_num_groups=32,
    )  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=8, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        hidden_act="gelu", projection_dim=8, bos_token_id=49406, eos_token_id=49407,
    ))  # fmt: skip
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, **betas)
    return StableDiffusionPipeline(
        vae=vae.eval(), unet=unet.eval(), text_encoder=text.eval(), scheduler=scheduler, tokenizer=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(theirs, tmp_path_factory):
    """Return a function: a way of saving -> the folder, which must not be changed."""
    folders = {}

    def folder(how):
        if how not in folders:
            folders[how] = tmp_path_factory.mktemp("pipeline") / "model"
            theirs.save_pretrained(folders[how], **SAVED[how])
        return folders[how]

    return folder


@pytest.fixture
def copied(saved, tmp_path):
    def copy(how="safetensors"):
        return shutil.copytree(saved(how), tmp_path / "copy")

    return copy


def fails(path, error, *expected, **options):
    with pytest.raises(CheckpointError) as caught:
        open_weights(path, **options)
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message
    assert all(part in message for part in expected), message


def test_a_pipeline_computes_as_diffusers_does(theirs, saved):
    model = load_model(YAML, saved("safetensors"), device="cpu", dtype="float32")
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([1, 901]), torch.randn(2, 77, 8)
    ids = torch.randint(0, 49406, (2, 77))
    close = {"atol": 2e-5, "rtol": 1e-4}
    with torch.no_grad():
        ours = model.apply_model(x, t, {"c_crossattn": [context]})
        torch.testing.assert_close(ours, theirs.unet(x, t, context).sample, **close)
        decoded = model.first_stage_model.decode(x)
        torch.testing.assert_close(decoded, theirs.vae.decode(x).sample, **close)
        encoded = model.cond_stage_model.model(ids, skip=1)
        torch.testing.assert_close(encoded, theirs.text_encoder(ids).last_hidden_state, **close)


@pytest.mark.few(1)
@pytest.mark.parametrize("how", SAVED)
def test_every_way_of_saving_opens_alike(how, theirs, saved):
    opened = open_weights(saved(how))
    assert opened.container is Container.FOLDER and opened.parts.keys() == {"unet", "vae", "text_encoder"}
    for part, tensors in opened.parts.items():
        want = getattr(theirs, part).state_dict()
        assert same({name.removeprefix("text_model."): x for name, x in tensors.items()},
                    {name.removeprefix("text_model."): x for name, x in want.items()})
    assert len(opened.files) == len(set(opened.files)) > (3 if "sharded" in how else 2)
    assert opened.configs["unet"]["cross_attention_dim"] == 8
    assert opened.configs["model_index"]["_class_name"] == "StableDiffusionPipeline"
    assert opened.configs["scheduler"]["prediction_type"] == "epsilon"
    assert same(load_checkpoint(saved(how)), load_checkpoint(saved("safetensors")))


@pytest.mark.parametrize("part, prefix", [
    ("unet", "model.diffusion_model."), ("vae", "first_stage_model."), ("text_encoder", "cond_stage_model."),
])
@pytest.mark.parametrize("how", ["bin", "sharded"])
def test_a_part_alone(part, prefix, how, saved, tmp_path):
    whole = load_checkpoint(saved("safetensors"))
    want = {name: x for name, x in whole.items() if name.startswith(prefix)}
    renamed = shutil.copytree(saved(how) / part, tmp_path / "renamed")
    assert open_weights(renamed).parts.keys() == {part}
    assert same(load_checkpoint(renamed), want)
    if how == "bin" and part != "text_encoder":         # by itself a tower of this width looks like SD 1.x's
        file = next(renamed.glob("*.bin"))
        assert same(load_checkpoint(file), want)


def test_full_precision_safetensors_are_preferred(theirs, copied, caplog):
    folder = copied()
    theirs.vae.save_pretrained(folder / "vae", variant="fp16")
    theirs.vae.save_pretrained(folder / "vae", safe_serialization=False)
    caplog.set_level(logging.INFO)
    names = [file.name for file in open_weights(folder).files]
    assert "diffusion_pytorch_model.safetensors" in names and len(names) == 3
    assert "taking diffusion_pytorch_model.safetensors, leaving diffusion_pytorch_model.bin, " in caplog.text
    files = open_weights(folder, variant="fp16").files
    assert "diffusion_pytorch_model.fp16.safetensors" in [file.name for file in files]
    fails(folder, CheckpointError, "has no variant 'bf16'; there: fp16", variant="bf16")
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    names = [file.name for file in open_weights(folder).files]
    assert "diffusion_pytorch_model.bin" in names, "full precision, though it is no .safetensors"


def test_parts_without_weights_are_no_part(copied):
    folder = copied()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "image_encoder": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    opened = open_weights(folder)
    assert opened.parts.keys() == {"unet", "vae", "text_encoder"}
    assert opened.configs.keys() == {"model_index", "scheduler", "unet", "vae", "text_encoder"}


def test_a_listed_part_that_is_not_there(copied):
    folder = copied()
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    fails(folder, DamagedCheckpointError, "model_index.json lists unet, but unet/ holds no weights")
    shutil.rmtree(folder / "unet")
    fails(folder, DamagedCheckpointError, "model_index.json lists unet, but unet/ holds no weights")


def test_folders_of_something_else(tmp_path):
    fails(tmp_path, NotACheckpointError, "is a folder without model_index.json and without weights")
    (tmp_path / "a.ckpt").write_bytes(b"x")
    fails(tmp_path, NotACheckpointError, "is a folder; give one of the files in it: a.ckpt")


@pytest.mark.few(8)
@pytest.mark.parametrize("content, expected", [
    (b"", "no valid JSON"), (b"{", "no valid JSON"), (b"\xff\xfe", "no valid JSON"),
    (b"[" * 100_000, "no valid JSON"), (b"1" * 5000, "no valid JSON"),
    (b'{"unet": 1, "unet": 2}', "'unet' stands there twice"), (b"[]", "holds a list"),
    (b'"' + b"x" * 16_000_000 + b'"', "expected JSON of at most"),
])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_broken_json(name, content, expected, copied):
    folder = copied()
    (folder / name).write_bytes(content)
    fails(folder, DamagedCheckpointError, f"{folder / name}: ", expected)


@pytest.mark.parametrize("name", ["../unet", "/etc", "..", "a/b", "unet\n"])
def test_no_part_lies_outside(name, copied):
    folder = copied()
    (folder / "model_index.json").write_text(json.dumps({name: ["diffusers", "UNet2DConditionModel"]}))
    fails(folder, DamagedCheckpointError, "which is no folder in it")


INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"


@pytest.mark.parametrize("name", ["../vae/a.safetensors", "/etc/passwd", "..", ".", "", "a\\b", "a\n"])
def test_no_shard_lies_outside(name, copied):
    folder = copied("sharded")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["conv_in.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    fails(folder, DamagedCheckpointError, "which is no file in its folder")


def test_shards_that_do_not_fit_their_index(copied, caplog):
    folder = copied("sharded")
    index = json.loads((folder / INDEX).read_text())
    shards = sorted((folder / "unet").glob("*-of-*"))
    stored = load_file(shards[0])
    name = next(iter(stored))

    def with_map(**changed):
        (folder / INDEX).write_text(json.dumps(index | {"weight_map": index["weight_map"] | changed}))

    with_map(**{"sur\nplus": shards[0].name})
    fails(folder, DamagedCheckpointError, f"{shards[0]}: lacks 1 tensor", "('sur\\nplus')")
    with_map(**{name: shards[1].name})
    fails(folder, DamagedCheckpointError, f"{shards[0]}: has surplus 1 tensor", name)
    with_map()
    save_file(load_file(shards[1]) | {name: stored[name]}, shards[1])
    fails(folder, DamagedCheckpointError, f"{shards[1]}: has surplus 1 tensor", name)
    for broken in ({}, {"weight_map": []}, {"weight_map": {"a": 3}}):
        (folder / INDEX).write_text(json.dumps(broken))
        fails(folder, DamagedCheckpointError, "has no 'weight_map'")
    with_map()
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[:-1])
    fails(folder, DamagedCheckpointError, f"{shards[1]}: is truncated")
    shards[1].unlink()
    fails(folder, DamagedCheckpointError, f"1 of {len(shards)} shards are missing ({shards[1].name})")
    (folder / INDEX).unlink()
    fails(folder, DamagedCheckpointError, "has shards", "but not their index.json")


def test_another_total_is_only_told(copied, caplog):
    folder = copied("sharded")
    index = json.loads((folder / INDEX).read_text())
    open_weights(folder)
    assert "claims" not in caplog.text
    index["metadata"]["total_size"] += 1
    (folder / INDEX).write_text(json.dumps(index))
    open_weights(folder)
    assert "claims" in caplog.text


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json"]
)
def test_links_lead_nowhere_else(name, copied, tmp_path):
    folder = copied()
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    fails(folder, DamagedCheckpointError, f"{folder / name}: is a link to {tmp_path / 'elsewhere'}, outside")


def test_links_within_the_folder_and_to_it_are_followed(copied, tmp_path):
    folder = copied()
    want = load_checkpoint(folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(folder / "kept")
    weights.symlink_to(folder / "kept")
    (tmp_path / "link").symlink_to(folder)
    assert same(load_checkpoint(tmp_path / "link"), want)


def test_a_hub_cache_is_made_of_links(copied, tmp_path):
    folder = copied()
    want = load_checkpoint(folder)
    snapshot = tmp_path / "models--x" / "snapshots" / "0123abc"
    (tmp_path / "models--x" / "blobs").mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    for number, file in enumerate(file for file in snapshot.rglob("*") if file.is_file()):
        blob = tmp_path / "models--x" / "blobs" / str(number)
        file.rename(blob)
        file.symlink_to(blob)
    assert same(load_checkpoint(snapshot), want)
    assert open_weights(snapshot / "unet").parts.keys() == {"unet"}
    for above in (snapshot.parent, snapshot.parent.parent):
        with pytest.raises(CheckpointError, match="folder of the hub's cache; give .*0123abc"):
            open_weights(above)


def test_a_pickle_in_a_folder_is_not_run(copied, tmp_path):
    folder = copied("bin")
    payload = b"cos\nsystem\n(S'touch " + str(tmp_path / "canary").encode() + b"'\ntR."
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(payload)
    fails(folder, UnsafeCheckpointError, "system", "nothing was executed")
    assert not (tmp_path / "canary").exists()


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [
    "v1-inference", "v2-inference-v", "v2-inpainting-inference", "v2-midas-inference", "x4-upscaling",
    "v2-1-stable-unclip-h-inference", "v2-1-stable-unclip-l-inference",
])  # fmt: skip
def test_a_folder_lacks_nothing_that_a_published_model_uses(name):
    """At full size on the meta device: what diffusers has no place for is what the model does not read."""
    config = load_config(f"configs/stable-diffusion/{name}.yaml")
    with torch.device("meta"):
        model = instantiate(config.model)
    parts = ldm_to_parts(model.state_dict())
    unused = parts.pop(UNUSED)
    weights = to_ldm(parts, {"text_encoder": {"hidden_act": "quick_gelu" if "v1" in name else "gelu"}})
    fit = match_keys(model, weights)
    assert fit.is_good, fit.report()
    assert set(fit.zeros) <= unused.keys() and len(fit.matched) == len(weights)
