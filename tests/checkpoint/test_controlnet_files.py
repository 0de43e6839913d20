"""Files of ControlNets in every layout: what identify says of them, and converting them both ways."""

import json

import pytest
import torch
from checkpoint_files import is_mapped
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, tiny_model

from golden_cases import manifest
from ldm.checkpoint import identify
from ldm.checkpoint.controlnet import pooled_by
from ldm.checkpoint.conversion import ConvertOptions, convert
from ldm.config import instantiate, load_config
from ldm.errors import InputError, WrongModelError
from ldm.loading import controls
from ldm.models.controlnet import ControlNet

PREFIX = "control_model."


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Write a tiny model with a ControlNet, the ControlNet alone, and it as a difference from the model."""
    folder = tmp_path_factory.mktemp("controls")
    config = tiny_config("controlnet", folder)
    whole = tiny_model(config).state_dict()
    save_file(whole, folder / "whole.safetensors")
    alone = {name: x for name, x in whole.items() if name.startswith(PREFIX)}
    torch.save(alone, folder / "alone.pth")
    save_file({name.removeprefix(PREFIX): x for name, x in alone.items()}, folder / "bare.safetensors")
    difference = {"difference": torch.ones(())}
    for name, x in alone.items():
        own = whole.get("model.diffusion_model." + name.removeprefix(PREFIX))
        difference[name] = x if own is None else x - own
    save_file(difference, folder / "diff.safetensors")
    return folder


def options(home, **about):
    return ConvertOptions(config=str(home / "controlnet.yaml"), **about)


def alone(home):
    return torch.load(home / "alone.pth")


def same(got, want, **tolerance):
    assert got.keys() == want.keys()
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, **({"atol": 0, "rtol": 0} | tolerance))


@pytest.mark.few(1)
@pytest.mark.parametrize("source", ["alone.pth", "bare.safetensors", "whole.safetensors"])
def test_a_controlnet_becomes_a_folder_of_diffusers_and_comes_back(home, tmp_path, source):
    only = "controlnet" if source == "whole.safetensors" else None
    convert(home / source, tmp_path / "folder", options(home, only=only))
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["_class_name"] == "ControlNetModel" and config["conditioning_channels"] == 3
    assert config["global_pool_conditions"] is False and config["cross_attention_dim"] == 32
    import diffusers

    network = diffusers.ControlNetModel.from_pretrained(tmp_path / "folder", local_files_only=True)
    assert sum(x.numel() for x in network.parameters()) == sum(x.numel() for x in alone(home).values())
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    same(load_file(tmp_path / "back.safetensors"), alone(home))


def test_the_controlnet_of_a_whole_file_is_written_alone(home, tmp_path):
    only = ConvertOptions(only="controlnet")
    done = convert(home / "whole.safetensors", tmp_path / "out.safetensors", only)
    assert list(done.kept) == ["ControlNet"]
    same(load_file(tmp_path / "out.safetensors"), alone(home))
    found = identify(tmp_path / "out.safetensors")
    assert (found.kind, found.variant) == ("controlnet", "control-only") and not found.is_model
    half = options(home, only="controlnet", dtype=torch.float16)
    convert(home / "whole.safetensors", tmp_path / "half.safetensors", half)
    assert identify(tmp_path / "half.safetensors").dtypes.keys() == {"float16"}
    unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 4, 3, 3)}
    save_file(unet, tmp_path / "unet.safetensors")
    with pytest.raises(WrongModelError, match="it has no ControlNet"):
        convert(tmp_path / "unet.safetensors", tmp_path / "b.safetensors", only)


def test_a_difference_is_completed_by_its_base(home, tmp_path):
    with pytest.raises(InputError, match="as a difference; give the weights to add it to with --base"):
        convert(home / "diff.safetensors", tmp_path / "folder", options(home))
    base = ConvertOptions(base=str(home / "whole.safetensors"))
    convert(home / "diff.safetensors", tmp_path / "out.safetensors", base)
    same(load_file(tmp_path / "out.safetensors"), alone(home), atol=1e-6)
    with pytest.raises(InputError, match="no difference; leave --base out"):
        convert(home / "alone.pth", tmp_path / "b.safetensors", base)


SAYING = ("its name", "control_v11e_sd15_shuffle.yaml", "config.json", "its metadata")


@pytest.mark.parametrize("said_by", SAYING)
def test_pooling_is_known_and_kept(home, tmp_path, said_by):
    whole = json.loads((home / "controlnet.yaml").read_text())
    whole["model"]["params"]["global_average_pooling"] = True
    source = tmp_path / "control_v11e_sd15_shuffle.safetensors"
    save_file(alone(home), source)
    if said_by.endswith(".yaml"):
        source.with_suffix(".yaml").write_text(json.dumps(whole))
    if said_by in ("config.json", "its metadata"):
        convert(source, tmp_path / "folder", options(home))
        source = tmp_path / "folder"
        assert json.loads((source / "config.json").read_text())["global_pool_conditions"] is True
    if said_by == "its metadata":
        convert(source, tmp_path / "renamed.safetensors")
        source = tmp_path / "renamed.safetensors"
    assert any(f"global average pooling), says {said_by}" in note for note in identify(source).notes)
    assert not any("pooling" in note for note in identify(home / "alone.pth").notes)


def test_a_yaml_that_says_no_goes_before_the_name(tmp_path):
    (tmp_path / "shuffle.yaml").write_text("model: {params: {global_average_pooling: false}}")
    assert pooled_by(tmp_path / "shuffle.pth", {}, {}) is None
    assert pooled_by(tmp_path / "unshuffled.pth", {}, {}) is None
    (tmp_path / "shuffle.yaml").write_text("- no model")
    assert pooled_by(tmp_path / "shuffle.pth", {}, {}) == "its name"


def test_weights_are_mapped_until_they_are_needed(home, tmp_path):
    """Only what the ControlNet takes of a larger file is read."""
    from ldm.loading import load_model

    model = load_model(home / "controlnet.yaml", home / "whole.safetensors", device="cpu", dtype="float32")
    for file in ("whole.safetensors", "alone.pth", "bare.safetensors"):
        _, tensors, _ = controls._matched(home / file, model, "the model")
        assert all(is_mapped(x) for x in tensors.values()), file


@pytest.mark.parametrize("name", ["cldm_v15", "cldm_v21"])
def test_a_controlnet_of_a_unet_has_the_reference_shapes(name):
    with torch.device("meta"):
        unet = instantiate(load_config(f"configs/controlnet/{name}.yaml").model.params.unet_config)
        ours = {PREFIX + key: tuple(x.shape) for key, x in ControlNet.for_unet(unet).state_dict().items()}
    reference = {key: shape for key, (shape, _) in manifest(name).items() if key.startswith(PREFIX)}
    assert ours == reference and len(ours) == 340
