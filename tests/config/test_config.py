"""Configurations: found, overridden, checked and built; never a program."""

import copy
import json
import math
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import ldm.config
from golden_cases import cases
from ldm.config import find_config, instantiate, load_config
from ldm.errors import ConfigError
from ldm.training.options import SECTION_CLASSES
from ldm.util import instantiate_from_config

UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1,
        "attention_resolutions": [1], "channel_mult": [1], "num_head_channels": 16,
        "use_spatial_transformer": True, "context_dim": 8,
    },
}
ROOT = Path(__file__).resolve().parents[2]
IDENTITY = {"target": "torch.nn.Identity"}
MODEL = {
    "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
    "base_learning_rate": 1e-4,
    "params": {
        "unet_config": UNET, "first_stage_config": IDENTITY, "cond_stage_config": "__is_unconditional__",
        "timesteps": 10, "monitor": "val/loss", "scheduler_config": {"target": "not.built", "params": {}},
    },
}

HOSTILE = """
    os.system posix.system subprocess.Popen subprocess.run builtins.eval builtins.exec builtins.open
    builtins.__import__ importlib.import_module runpy.run_path pkgutil.resolve_name shutil.rmtree
    pickle.loads marshal.loads ctypes.CDLL socket.socket webbrowser.open antigravity.geohash this.s
    code.interact pdb.run timeit.timeit functools.partial operator.methodcaller types.FunctionType
    torch.load torch.hub.load torch.jit.load torch.nn.Linear torch.nn.modules.linear.Linear numpy.load
    omegaconf.OmegaConf ldm.util.instantiate_from_config ldm.config.instantiate ldm.config.load_config
    ldm.loading.load_model ldm.errors.ConfigError ldm.models.unet.nn.Linear ldm.models.unet.torch.load
    ldm.models.unet.nn ldm.models.unet.Tensor ldm.models.unet.timestep_embedding
    ldm.models.unet.no_such_class ldm.models.no_such_module.Class ldm.models ldm UNetModel
    .unet.UNetModel ldm.models..unet.UNetModel ../evil.Class /tmp/evil.py file:///tmp/evil.py
    evil.py:Class ldm.models.unet.UNetModel()
""".split() + [
    "", "ldm.models.unet.UNetModel; import os", "ldm.models.unet.UNetModel\n", 5, None,
    ["ldm.models.unet.UNetModel"], {"target": "os.system"},
]


@pytest.mark.parametrize("target", HOSTILE, ids=str)
def test_only_classes_of_the_project_are_built(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with pytest.raises(ConfigError) as caught:
        instantiate({"target": target, "params": {"command": "touch canary"}})
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model")
    assert not (tmp_path / "canary").exists()
    root = str(target).partition(".")[0]
    assert root == "ldm" or root not in set(sys.modules) - before


def test_hostile_target_deep_inside_is_refused_before_anything_is_built(monkeypatch):
    built = []
    monkeypatch.setattr(ldm.config, "_build", lambda *_: built.append(1))
    node = copy.deepcopy(MODEL)
    node["params"]["first_stage_config"] = {"target": "subprocess.Popen", "params": {"args": ["ls"]}}
    with pytest.raises(ConfigError, match=r"model\.params\.first_stage_config: target subprocess\.Popen"):
        instantiate(node)
    assert not built


def test_builds_nested_nodes_and_leaves_the_node_alone():
    before = copy.deepcopy(MODEL)
    model = instantiate(MODEL)
    assert before == MODEL
    assert type(model).__name__ == "LatentDiffusion" and model.cond_stage_model is None
    assert type(model.model.diffusion_model).__name__ == "UNetModel"
    assert model.num_timesteps == 10


def test_the_training_loss_of_a_published_autoencoder_is_not_built():
    sizes = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
             "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    loss = {"target": "ldm.modules.losses.LPIPSWithDiscriminator", "params": {"disc_start": 50001}}
    node = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"embed_dim": 4, "monitor": "val/rec_loss", "ddconfig": sizes, "lossconfig": loss},
    }
    assert instantiate(node).loss is None


def test_takes_omegaconf_nodes_and_gives_classes_plain_lists():
    unet = instantiate_from_config(OmegaConf.create(UNET))
    assert type(unet).__name__ == "UNetModel"


def test_the_two_literals_mean_none():
    assert instantiate("__is_first_stage__") is None
    assert instantiate("__is_unconditional__") is None


def test_lists_every_fault_at_once_with_path_and_nearest_name():
    node = copy.deepcopy(MODEL)
    unet = node["params"]["unet_config"]["params"]
    unet["chanel_mult"] = unet.pop("channel_mult")
    unet["model_channels"] = "32"
    del unet["out_channels"]
    node["params"]["linear_start"] = "1e-4"
    node["parms"] = {}
    with pytest.raises(ConfigError) as caught:
        instantiate(node)
    message = str(caught.value)
    assert message.startswith("5 faults: ")
    for part in (
        "model.parms: unknown key; did you mean 'params'?",
        "model.params.unet_config.params.chanel_mult: UNetModel has no such parameter; did you mean 'channel",
        "model.params.unet_config.params.model_channels: expected int, got '32'",
        "model.params.unet_config.params.out_channels: UNetModel needs it and it is missing",
        "model.params.linear_start: expected float, got '1e-4'",
    ):
        assert part in message


@pytest.mark.parametrize(
    "key, value, fits",
    [
        ("timesteps", 10, True), ("timesteps", 10.5, False), ("timesteps", True, False),
        ("timesteps", None, False), ("scale_factor", 1, True), ("linear_start", "1", False),
        ("conditioning_key", None, True), ("conditioning_key", 3, False), ("use_ema", 1, False),
        ("parameterization", "v", True),
    ],
)
def test_types_are_checked_against_the_constructor(key, value, fits):
    node = copy.deepcopy(MODEL)
    node["params"][key] = value
    if fits:
        instantiate(node)
    else:
        with pytest.raises(ConfigError, match=rf"model\.params\.{key}: expected"):
            instantiate(node)


@pytest.mark.parametrize("node", [{}, {"params": {}}, None, 3, "text", []])
def test_what_is_no_node_is_an_error(node):
    with pytest.raises(ConfigError, match="expected a node"):
        instantiate(node)


def test_a_value_that_the_class_refuses_names_the_node():
    node = copy.deepcopy(MODEL)
    node["params"]["unet_config"]["params"]["model_channels"] = 33
    with pytest.raises(ConfigError, match=r"^model.*UNetModel"):
        instantiate(node)


def test_parameters_of_the_class_above_count_where_a_constructor_hands_them_on():
    """`**rest` of a subclass is not a licence: names are checked, and missing ones are missed."""
    node = copy.deepcopy(MODEL)
    node["target"] = "ldm.models.diffusion.ddpm.LatentDepth2ImageDiffusion"
    node["params"]["scale_facto"] = 1.0
    with pytest.raises(ConfigError, match="scale_facto: .* no such parameter; did you mean 'scale_factor'"):
        instantiate(node)
    del node["params"]["scale_facto"], node["params"]["first_stage_config"]
    with pytest.raises(ConfigError, match="first_stage_config: LatentDepth2ImageDiffusion needs it"):
        instantiate(node)


def test_published_parameters_that_change_nothing_are_taken():
    node = copy.deepcopy(MODEL)
    ignored = {"clip_denoised": True, "learn_logvar": False,
               "make_it_fit": False, "reset_ema": False, "reset_num_ema_updates": False, "ema_decay": None}
    absent = {"given_betas": None, "scale_by_std": False, "force_null_conditioning": False}
    node["params"] |= ignored | absent
    node["params"]["unet_config"]["params"]["n_embed"] = None
    assert type(instantiate(node)).__name__ == "LatentDiffusion"


def test_parameters_of_the_losses_reach_p_losses():
    node = copy.deepcopy(MODEL)
    node["params"]["unet_config"] = IDENTITY
    plain = instantiate(node)
    weights = {"loss_type": "l1", "l_simple_weight": 0.5, "original_elbo_weight": 0.25, "logvar_init": 1.0}
    node["params"] |= weights | {"v_posterior": 1.0}
    model = instantiate(node)
    assert torch.equal(model.posterior_variance, model.betas) and not torch.equal(
        plain.posterior_variance, plain.betas
    )
    x_start, noise = torch.randn(2, 1, 4, 8, 8)
    t = torch.tensor([5])
    model.apply_model = plain.apply_model = lambda x_t, t, cond: x_t
    simple = (model.q_sample(x_start, t, noise) - noise).abs().mean()
    vlb = model.schedule.lvlb_weights("eps")[5] * simple
    loss, parts = model.p_losses(x_start, None, t, noise)
    torch.testing.assert_close(loss, 0.5 * (simple / math.e + 1) + 0.25 * vlb)
    torch.testing.assert_close(parts["train/loss_simple"], simple)
    squared, _ = plain.p_losses(x_start, None, t, noise)
    torch.testing.assert_close(squared, (plain.q_sample(x_start, t, noise) - noise).square().mean())


@pytest.mark.parametrize("key, value", [("scale_by_std", True), ("given_betas", [0.1, 0.2])])
def test_published_parameters_that_cannot_be_honoured_are_an_error(key, value):
    node = copy.deepcopy(MODEL)
    node["params"][key] = value
    with pytest.raises(ConfigError, match=f"{key}: LatentDiffusion has no such parameter"):
        instantiate(node)


def test_every_ignored_key_has_a_reason():
    assert all(len(reason) > 10 for reason in ldm.config.IGNORED_PARAMS.values())


@pytest.fixture
def yaml_file(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("model: {target: x.Y, params: {a: 1, b: [1, 2], arch: tiny}}")
    return path


def test_overrides_are_parsed_as_yaml(yaml_file):
    overrides = ["model.params.a=1e-3", "model.params.b.1=[3]", "model.params.new=", "model.target=p.Q=R"]
    config = load_config(yaml_file, overrides)
    assert config.model.params.a == 1e-3
    assert config.model.params.b == [1, [3]]
    assert config.model.params.new is None
    assert config.model.target == "p.Q=R"


@pytest.mark.parametrize(
    "override, expected",
    [
        ("model.parms.a=1", "did you mean 'params'"),
        ("modle=1", "did you mean 'model'"),
        ("model.params.b.2=1", "no '2'"),
        ("model.params.a.x=1", "is 1"),
        ("model.params.a", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("model.params.a=${oc.env:HOME}", "references"),
        ("model.params.a=!!python/name:os.system", "not allowed"),
        ("model.params.a=[1", "override"),
    ],
)
def test_a_wrong_override_is_named(yaml_file, override, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(yaml_file, [override])
    assert expected in str(caught.value) and override.partition("=")[0] in str(caught.value)


def test_files_beside_the_yaml_become_absolute(yaml_file, monkeypatch):
    assert load_config(yaml_file).model.params.arch == "tiny"
    (yaml_file.parent / "tiny.json").write_text("{}")
    monkeypatch.chdir(yaml_file.parent)
    assert load_config("model.yaml").model.params.arch == str(yaml_file.parent / "tiny.json")


def test_a_plain_node_finds_files_in_the_working_folder(tmp_path, monkeypatch):
    """As `OmegaConf.load` and `instantiate_from_config` use it, which know of no folder."""
    text = {"context_length": 7, "vocab_size": 4610, "width": 32, "heads": 2, "layers": 1}
    description = {"embed_dim": 32, "vision_cfg": {}, "text_cfg": text}
    shutil.copy(ROOT / "configs/demo/emoji_bpe.txt.gz", tmp_path / "merges.txt.gz")
    node = {
        "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
        "params": {"arch": "tiny", "bpe_path": "merges.txt.gz", "layer": "last"},
    }
    given = copy.deepcopy(node)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no tiny.json next to the configuration or in the working folder"):
        instantiate_from_config(node)
    (tmp_path / "tiny.json").write_text(json.dumps(description))
    assert instantiate_from_config(node)(["a cat"]).shape == (1, 7, 32)
    assert instantiate_from_config(OmegaConf.create(node))(["a cat"]).shape == (1, 7, 32)
    assert node == given


def test_finds_files_as_given_then_in_the_repository_then_in_the_package(tmp_path, monkeypatch):
    roots = (tmp_path / "root" / "configs", tmp_path / "root" / "ldm" / "configs")
    monkeypatch.setattr(ldm.config, "CONFIG_ROOTS", roots)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    name = "configs/demo/x.yaml"
    with pytest.raises(ConfigError, match="no such file"):
        find_config(name)
    installed = tmp_path / "root/ldm/configs/demo/x.yaml"
    repository = tmp_path / "root/configs/demo/x.yaml"
    given = elsewhere / "configs/demo/x.yaml"
    for path in (installed, repository, given):
        path.parent.mkdir(parents=True)
        path.write_text("a: 1\n")
        assert find_config(name).resolve() == path
    assert find_config("demo/x.yaml") == repository
    with pytest.raises(ConfigError, match="did you mean 'configs/demo/x.yaml'"):
        find_config("configs/demo/xx.yaml")


@pytest.mark.parametrize("case", cases("e2e_txt2img")[:1], ids=lambda case: case.name)
def test_a_published_yaml_builds_on_the_meta_device(case):
    import torch

    node = load_config(case.files["config"]).model
    with torch.device("meta"):
        model = instantiate(node)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.fixture
def training_file(tmp_path):
    path = tmp_path / "training.yaml"
    path.write_text(
        "model: {target: ldm.models.latent_diffusion.LatentDiffusion, params: {linear_start: 0.1}}\n"
        "data: {target: ldm.data.images.CaptionedImages, params: {path: data, size: 64}}\n"
        "train: {learning_rate: 1.0e-4}\n"
        "diffusion: {sample_prompts: [a, b], new_tensors: {}}\n"
    )
    return path


TEXTS = ["123", "12:30", "yes", "1e3", "null", "~", "", "0x1F", "1_000", "2024-01-02", "[a, b]", "{a}", "[a"]
TEXTS += ["'quoted'", "a: b", "# no comment", "a #b", "- a", "~/data", "*", "@a", "%a", " a ", "C:\\x"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "key", ["data.params.path", "train.precision", "diffusion.ckpt", "diffusion.sample_prompts.1"]
)
def test_where_text_is_expected_an_override_is_taken_as_it_is(training_file, key, text):
    content = ldm.config.read_config(training_file, [f"{key}={text}"], SECTION_CLASSES)
    for part in key.split("."):
        content = content[int(part) if part.isdigit() else part]
    assert content == text


def test_a_path_or_one_of_several_kinds_of_text_is_text_too():
    for hint in (str | Path, str | Path | None, str | Iterable[str]):
        for text in ("123", "12:30", "yes"):
            assert ldm.config._override_value(text, "", lambda hint=hint: hint) == text


@pytest.mark.parametrize(
    "override, value",
    [
        ("train.max_steps=1e3", 1000.0), ("train.batch_size=0x10", 16), ("train.compile=yes", True),
        ("train.learning_rate=1e-3", 1e-3), ("train.betas=[0.9, 1e-1]", [0.9, 0.1]),
        ("data.params.size=128", 128), ("data.params.mirror=no", False), ("data.params.captions=null", None),
        ("data.params.captions=", None), ("data.params.captions=12:30", "12:30"),
        ("diffusion.sample_prompts=[no, 12:30, 1e3, 'a, b']", ["no", "12:30", "1e3", "a, b"]),
        ("diffusion.new_tensors={a*: 1, b: no}", {"a*": "1", "b": "no"}),
        ("model.params.parameterization=v", "v"), ("model.params.conditioning_key=null", None),
        ("model.params.linear_start=1e-3", 1e-3), ("model.params.use_ema=off", False),
    ],
)  # fmt: skip
def test_everywhere_else_an_override_is_yaml(training_file, override, value):
    content = ldm.config.read_config(training_file, [override], SECTION_CLASSES)
    for part in override.partition("=")[0].split("."):
        content = content[part]
    assert content == value and type(content) is type(value)


@pytest.mark.parametrize("key", ["data.params.path", "diffusion.ckpt", "model.params.linear_start"])
def test_references_are_refused_in_texts_too(training_file, key):
    with pytest.raises(ConfigError, match="references"):
        ldm.config.read_config(training_file, [f"{key}=${{oc.env:HOME}}/x"], SECTION_CLASSES)
