"""Training a ControlNet: it starts as the model alone, nothing else moves, and what it writes loads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_loop import Loop, changed, weights

import ldm
from ldm.annotators import find
from ldm.diffusion.cond import Cond, Control
from ldm.errors import ConfigError, InputError
from ldm.loading.controls import load_control
from ldm.models.controlnet import ControlNet
from ldm.models.gaussian import DiagonalGaussianDistribution
from ldm.training.building import DECODER, build_data
from ldm.training.estimate import describe
from ldm.training.fit import FOLDER_VARIABLE, build_module, train
from ldm.training.options import resolve_config
from ldm.training.run_folder import MetricsLog
from ldm.training.seeding import generator


@pytest.fixture
def controlled(config, tmp_path):
    """Return a function: controlled({"sd_locked": False}, max_steps=2) -> a configuration, with its model."""
    base = tmp_path / "base.safetensors"
    model = build_module(resolve_config(config("diffusion"))).diffusion
    torch.manual_seed(1)
    with torch.no_grad():  # a trained model has no zero convolutions, which let no gradient through
        for parameter in model.model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    save_file(model.state_dict(), base)

    def make(options: dict | None = None, hint: bool = True, **train) -> dict:
        made = config("control", {"ckpt": str(base), **(options or {})}, **train)
        made["data"]["params"]["extra_input"] = "hint" if hint else None
        return made

    return make


def predicted(module, control: bool) -> torch.Tensor:
    """Return what the model of a module predicts for fixed inputs."""
    torch.manual_seed(5)
    x, hint, context = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 64, 64), torch.randn(2, 12, 16)
    controls = (Control(module.trained.control_model, hint),) if control else ()
    with torch.no_grad():
        return module.diffusion.apply_model(x, torch.tensor([10, 900]), Cond(context, controls=controls))


def test_the_first_step_computes_what_the_model_computes(controlled, monkeypatch):
    loop = Loop(controlled(), monkeypatch)
    assert torch.equal(predicted(loop.module, True), predicted(loop.module, False))
    loop.run(2)
    assert not torch.equal(predicted(loop.module, True), predicted(loop.module, False))


@pytest.mark.few(1)
@pytest.mark.parametrize("locked", [True, False])
def test_the_model_is_locked_but_for_its_decoder_where_that_is_asked(controlled, monkeypatch, locked):
    loop = Loop(controlled({"sd_locked": locked}), monkeypatch)
    module = loop.module
    model, control = weights(module.diffusion), weights(module.trained.control_model)
    loop.run(4)
    moved = changed(model, module.diffusion)
    decoder = {k for k in model if k.startswith(tuple(f"model.diffusion_model.{d}." for d in DECODER))}
    assert moved == (set() if locked else decoder)
    assert changed(control, module.trained.control_model) == set(control), "the whole copy is trained"
    encoder = module.diffusion.model.diffusion_model.input_blocks
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())


@pytest.mark.few(1)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_falls(controlled, monkeypatch, prediction):
    made = controlled({"text_dropout": 0.0}, learning_rate=1e-2)
    made["data"]["params"]["count"] = 1
    made["model"]["params"]["parameterization"] = prediction
    loop = Loop(made, monkeypatch)
    before = loop.module.evaluate(loop.data)["val_loss"]
    loop.run(16)
    assert loop.module.evaluate(loop.data)["val_loss"] < 0.9 * before


def test_hints_are_made_of_the_images_that_are_trained_on(controlled, monkeypatch):
    loop = Loop(controlled({"annotator": "canny,low=50,high=100"}, hint=False), monkeypatch)
    batch = next(loop.batches)
    made = loop.module.extra_of(batch)
    pixels = ((batch["images"] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for image, hint in zip(pixels, made, strict=True):
        expected = torch.from_numpy(find("canny")(low=50, high=100, resolution=None)(image)).permute(2, 0, 1)
        assert torch.equal(hint, expected) and hint.any()
    (control,) = loop.module.conditioning(torch.zeros(4, 12, 16), made).controls
    assert control.hint.shape == (4, 3, 64, 64) and set(control.hint.unique().tolist()) == {0.0, 1.0}


def test_cached_hints_are_the_data_s_own(controlled, monkeypatch, tmp_path):
    loop = Loop(controlled({"cache_latents": 6}), monkeypatch)
    cache = loop.module.prepare(loop.data, tmp_path, torch.device("cpu"))
    assert cache.extra_inputs.dtype == torch.uint8 and cache.extra_inputs.shape == (6, 3, 16, 16)
    _, _, given = loop.data.batch(generator(0, "cache", 0), 6)
    assert torch.equal(cache.extra_inputs, (255 * given["hint"]).round().to(torch.uint8))
    _, _, drawn = cache.batch(generator(1), 3)
    batch = {"extra_input": drawn["extra_input"]}
    (control,) = loop.module.conditioning(torch.zeros(3, 12, 16), loop.module.extra_of(batch)).controls
    assert 0 <= float(control.hint.min()) and float(control.hint.max()) == 1.0


def test_the_grid_shows_map_target_and_result_in_a_row(controlled, monkeypatch):
    loop = Loop(controlled({"sample_count": 2, "sample_steps": 2}), monkeypatch)
    shown = loop.module.sample(loop.data)
    images, captions, given = loop.data.batch(generator(0, "samples"), 2)
    assert shown.columns == 3 and shown.captions == [x for c in captions for x in ("map", "target", c)]
    torch.testing.assert_close(shown.images[0::3], 2 * given["hint"] - 1, atol=0.005, rtol=0)
    assert torch.equal(shown.images[1::3], images)


PARTS = ["control_model.zero_convs.*", "control_model.input_hint_block.*"]


@pytest.mark.few(1)
@pytest.mark.parametrize("save", ["control", "difference", "full"])
def test_what_is_saved_loads_as_it_was_trained(controlled, monkeypatch, tmp_path, save):
    loop = Loop(controlled({"save": save, "only": PARTS}, export_dtype="float32"), monkeypatch)
    loop.run(3)
    file = loop.module.export(tmp_path, loop.config, loop.data)
    trained = loop.module.trained.control_model.state_dict()
    names = set(load_file(file))
    if save == "full":
        model = ldm.load_model(tmp_path / "model.yaml", file, "cpu")
        found = model.control_model.state_dict()
        assert "logvar" in names and "first_stage_model.quant_conv.weight" in names
    else:
        found = load_control(file, loop.module.diffusion).network.state_dict()
        assert not (tmp_path / "model.yaml").exists()
    assert found.keys() == trained.keys()
    for name, x in trained.items():
        torch.testing.assert_close(found[name], x, atol=1e-7, rtol=1e-6)
    if save == "difference":
        assert "difference" in names and not any("input_blocks" in name for name in names)


def test_a_difference_fits_a_model_with_more_inputs(controlled, monkeypatch, tmp_path):
    """Such as an inpainting model, whose first convolution also reads the mask."""
    loop = Loop(controlled({"save": "difference"}, export_dtype="float32"), monkeypatch)
    loop.run(3)
    file, model = loop.module.export(tmp_path, loop.config, loop.data), loop.module.diffusion
    first = model.model.diffusion_model.input_blocks[0][0]
    first.weight = torch.nn.Parameter(torch.cat([first.weight, torch.ones_like(first.weight)], 1))
    found = load_control(file, model).network
    trained = loop.module.trained.control_model
    torch.testing.assert_close(found.input_blocks[0][0].weight, trained.input_blocks[0][0].weight)


def test_a_model_that_was_kept_in_half_precision_is_saved_in_its_own(controlled, monkeypatch, tmp_path):
    loop = Loop(controlled({"save": "difference"}, export_dtype="float32"), monkeypatch)
    loop.run(3)
    fresh = build_module(loop.config).diffusion
    loop.module.diffusion.model.bfloat16()
    found = load_control(loop.module.export(tmp_path, loop.config, loop.data), fresh).network
    trained = loop.module.trained.control_model
    torch.testing.assert_close(found.input_blocks[1][0].state_dict(), trained.input_blocks[1][0].state_dict())


def test_training_starts_from_a_control_file(controlled, monkeypatch, tmp_path):
    unet = build_module(resolve_config(controlled())).diffusion.model.diffusion_model
    given = ControlNet.for_unet(unet)
    torch.nn.init.normal_(given.middle_block_out[0].weight)
    file = tmp_path / "given.safetensors"
    save_file({f"control_model.{k}": x for k, x in given.state_dict().items()}, file)
    module = Loop(controlled({"control_ckpt": str(file)}), monkeypatch).module
    for name, x in module.trained.control_model.state_dict().items():
        assert torch.equal(x, given.state_dict()[name]), name


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Train a configuration in a folder; the loss curve is not drawn."""
    monkeypatch.setattr(MetricsLog, "draw", lambda self, path: None)

    def run(config: dict, name: str, resume: bool = False):
        monkeypatch.setenv(FOLDER_VARIABLE, "")
        folder = tmp_path / name
        return train(config, folder, str(folder) if resume else None)

    return run


def test_a_resumed_run_is_the_same_to_the_bit(controlled, run, tmp_path, leaves):
    options = {"ema_decay": 0.9, "cache_latents": 8, "sample_count": 0}
    states = []
    for name, parts in (("whole", [4]), ("halves", [2, 4])):
        for number, steps in enumerate(parts):
            run(controlled(options, max_steps=steps, accumulate=2), name, resume=number > 0)
        states.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True))
    one, other = (leaves({k: x for k, x in state.items() if k != "elapsed"}) for state in states)
    assert one.keys() == other.keys() and any("zero_convs" in name for name in one)
    for name, x in one.items():
        assert torch.equal(x, other[name]) if isinstance(x, torch.Tensor) else x == other[name], name
    assert not any("output_blocks" in name for name in one), "the locked model is not in checkpoints"


WRONG = [
    ({"ckpt": ""}, True, "control.ckpt: missing"),
    ({"annotator": "cany"}, True, "did you mean .canny"),
    ({"annotator": "canny,low=999"}, True, "control.annotator"),
    ({"save": "difference", "sd_locked": False}, True, "control.save=full"),
    ({"only": ["control_model.zero_conv.*"]}, True, "fits no tensor"),
    ({}, False, "set control.annotator"),
]


@pytest.mark.parametrize(("options", "hint", "said"), WRONG)
def test_wrong_settings_are_one_line(controlled, monkeypatch, options, hint, said):
    with pytest.raises((ConfigError, InputError), match=said) as raised:
        Loop(controlled(options, hint), monkeypatch).run(1)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_dry_run_counts_the_control_net(controlled):
    config = resolve_config(controlled())
    network = ControlNet.for_unet(build_module(config).diffusion.model.diffusion_model)
    count = sum(x.numel() for x in network.parameters())
    lines = list(describe(config))
    assert f"control: {count / 1e6:.1f} M parameters in ControlNet" in lines
    assert any(line.startswith("memory: about") for line in lines)


def test_a_dry_run_refuses_a_model_of_another_width(controlled):
    demo = Path(__file__).parents[2] / "configs/demo/emoji.safetensors"
    with pytest.raises(ConfigError, match=r"control\.ckpt .*emoji\.safetensors: is .*width 256; the UNet"):
        list(describe(resolve_config(controlled({"ckpt": str(demo)}))))


def test_the_toy_hint_is_the_outline_of_the_disc(controlled):
    data = build_data(controlled(), "data")
    images, _, given = data.batch(generator(0), 4)
    hint = given["hint"]
    assert hint.shape == images.shape and float(hint.max()) == 1.0 and float(hint[..., 0, 0].max()) == 0.0
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    for image, line in zip(images, hint[:, 0], strict=True):
        disc = ((image - image[:, :1, :1]).abs().sum(0) > 0.3).float()
        centre = [(disc * axis).sum() / disc.sum() for axis in (rows, columns)]
        ring = [(line * axis).sum() / line.sum() for axis in (rows, columns)]
        torch.testing.assert_close(torch.stack(centre), torch.stack(ring), atol=0.5, rtol=0)


class Pooled(torch.nn.Module):
    """An exact autoencoder of images without detail: each latent is the mean of a square of pixels."""

    downsampling_factor = 8

    def encode(self, images: torch.Tensor) -> DiagonalGaussianDistribution:
        mean = torch.nn.functional.avg_pool2d(images, 8)
        return DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, -30.0)], 1))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.repeat_interleave(8, 2).repeat_interleave(8, 3)


def of_pixels(loop: Loop) -> Loop:
    loop.module.diffusion.first_stage_model = Pooled()
    return loop


def complete(loop: Loop) -> dict[str, torch.Tensor]:
    """Return the weights of the loop's model, with those of the autoencoder that it was built with."""
    built = build_module(loop.config).diffusion.first_stage_model.state_dict()
    return loop.module.diffusion.state_dict() | {f"first_stage_model.{k}": x for k, x in built.items()}


@pytest.mark.slow
def test_circles_are_filled(config, controlled, monkeypatch, tmp_path):
    """The discs of a model go where the outlines are, once it has a ControlNet; before, anywhere."""
    made = config("diffusion", {"ema_decay": 0.0}, learning_rate=3e-3, batch_size=16)
    made["data"]["params"]["size"] = 64
    made["model"]["params"]["channels"] = 3
    unet = made["model"]["params"]["unet_config"]["params"]
    unet |= {"in_channels": 3, "out_channels": 3, "channel_mult": [1, 2]}
    base = of_pixels(Loop(made, monkeypatch))
    base.run(300)
    file = tmp_path / "discs.safetensors"
    save_file(complete(base), file)
    steered = controlled({"ckpt": str(file), "text_dropout": 0.1}, learning_rate=2e-3, batch_size=16)
    steered["model"] = made["model"]
    steered["data"]["params"]["size"] = 64
    loop = of_pixels(Loop(steered, monkeypatch))

    def figures() -> tuple[float, float]:
        """Return the loss, and how far the colours within the circles are from those asked for."""
        loop.module.options.sample_count = 8
        shown = loop.module.sample(loop.data).images
        target, result = shown[1::3], shown[2::3].clamp(-1, 1)
        inside = ((target - target[..., :1, :1]).abs().amax(1, keepdim=True) > 0.3).float()
        error = (target - result).abs().mean(1, keepdim=True)
        within = (error * inside).sum() / inside.sum()
        return loop.module.evaluate(loop.data)["val_loss"], float(within)

    before = figures()
    loop.run(300)
    after = figures()
    assert after[0] < 0.82 * before[0]
    assert after[1] < 0.65 * before[1]
