"""Controls in every task, on models of every kind, with every sampler and option that changes how it runs."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, tiny_model

from ldm.annotators import find
from ldm.annotators.seg import palette
from ldm.jobs.controls import ControlNets
from ldm.jobs.execute import generate
from ldm.models.controlnet import ControlNet
from ldm.networks import networks_of
from ldm.requests import Controlnet, Depth2Img, Img2Img, Inpaint, Outpaint, Txt2Img, Unclip
from ldm.samplers import SAMPLERS
from ldm.tasks.latents import StoppedAt
from ldm.tasks.memory_plan import measure
from ldm.tasks.steering import Steer, read_controls

SIDE = 64


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """Return tiny models by task, each with the file of a ControlNet for it."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def build(task):
        if task not in made:
            model = tiny_model(tiny_config(task, folder))
            with torch.random.fork_rng():
                torch.manual_seed(1)
                control = ControlNet.for_unet(model.model.diffusion_model)
                weights = {name: 0.05 * torch.randn_like(x) for name, x in control.state_dict().items()}
            save_file(weights, folder / f"control_{task}.safetensors")
            made[task] = model, str(folder / f"control_{task}.safetensors")
        return made[task]

    return build


def latents_of(model_of, task, cls, weight=1.0, **options):
    model, control = model_of(task)
    unit = {"kind": "map", "image": pixels(3, SIDE, SIDE, 3), "weight": weight}
    about = {
        "prompt": "a cat", "steps": 2, "n_samples": 1, "n_iter": 1, "scale": 3.0, "seed": 4,
        "dtype": "float32",
        "controls": [unit], "control_ckpt": [control],
    } | options  # fmt: skip
    if cls in (Txt2Img, Controlnet):
        about = {"height": SIDE, "width": SIDE} | about
    return torch.cat([batch.latents for batch in generate(model, cls(**about))])


IMAGE = {"init_img": pixels(5, SIDE, SIDE, 3)}
MASK = (np.indices((SIDE, SIDE))[0] < 32).astype(np.float32)
CASES = {
    "text, base": ("sd1", Txt2Img, {}),
    "text, SD 2": ("sd2", Txt2Img, {}),
    "text, v": ("sd2-v", Controlnet, {}),
    "image, v": ("sd2-v", Img2Img, IMAGE),
    "inpainting, 9 channels": ("inpaint", Inpaint, IMAGE | {"mask": MASK}),
    "inpainting, base": ("sd1", Inpaint, IMAGE | {"mask": MASK}),
    "only the mask": ("inpaint", Inpaint, IMAGE | {"mask": MASK, "only_masked": 8}),
    "outpainting": ("inpaint", Outpaint, IMAGE | {"left": 32}),
    "depth": ("depth", Depth2Img, IMAGE | {"depth": pixels(6, SIDE, SIDE)}),
    "image variations": ("unclip-l", Unclip, IMAGE),
    "hires": ("sd1", Txt2Img, {"hires": 2.0, "hires_strength": 1.0}),
    "hires, latent": ("sd1", Txt2Img, {"hires": 1.5, "hires_mode": "latent", "hires_strength": 1.0}),
    "guess": ("sd1", Txt2Img, {"guess": True}),
    "prompt": ("sd2-v", Txt2Img, {"control_mode": "prompt"}),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CASES)
def test_a_control_acts(model_of, name):
    task, cls, options = CASES[name]
    plain = {name: value for name, value in options.items() if name not in ("guess", "control_mode")}
    without = latents_of(
        model_of, task, Txt2Img if cls is Controlnet else cls, **plain, controls=[], control_ckpt=[]
    )
    assert torch.equal(latents_of(model_of, task, cls, 0.0, **options), without)
    assert (latents_of(model_of, task, cls, **options) - without).abs().max() > 1e-3


def test_two_halves_are_one(model_of):
    _, control = model_of("sd1")
    unit = {"kind": "map", "image": pixels(3, SIDE, SIDE, 3)}
    halves = [unit | {"weight": 0.5}] * 2
    whole = latents_of(model_of, "sd1", Txt2Img)
    two = latents_of(model_of, "sd1", Txt2Img, controls=halves, control_ckpt=[control])
    torch.testing.assert_close(two, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("cls", "kind", "image"),
    [
        (Img2Img, "canny", IMAGE["init_img"]),
        (Inpaint, "inpaint", np.dstack([IMAGE["init_img"], np.uint8(255 * (1 - MASK))])),
    ],
)
def test_without_a_file_the_input_image_is_followed(model_of, cls, kind, image):
    options = IMAGE | ({"mask": MASK} if cls is Inpaint else {})
    own, given = (
        latents_of(model_of, "sd1", cls, **options, controls=[unit])
        for unit in ({"kind": kind}, {"kind": kind, "image": image})
    )
    assert torch.equal(own, given)
    assert not torch.equal(own, latents_of(model_of, "sd1", cls, **options, controls=[], control_ckpt=[]))


def test_a_file_that_is_written_again_is_loaded_again(model_of, tmp_path):
    model, control = model_of("sd1")
    file = tmp_path / "control.safetensors"
    shutil.copy(control, file)
    nets = ControlNets()
    first, same = (nets.open([[file]] * 2, model, "the model", False) for _ in range(2))
    assert first[0] is first[1] is same[0] is same[1]
    save_file({name: 2 * x for name, x in load_file(control).items()}, file)
    (again,) = nets.open([[file]], model, "the model", False)
    weight, before = (each.loaded.network.middle_block_out[0].weight for each in (again, first[0]))
    assert again.sha256() != first[0].sha256() and not torch.equal(weight, before)


def test_a_segmentation_map_of_another_size_keeps_its_colours(model_of):
    colours = np.repeat(palette()[[3, 7]], 40, axis=0)[:, None].repeat(70, 1)      # (80, 70, 3)
    model, control = model_of("sd1")
    request = Txt2Img(
        prompt="a cat", steps=1, n_samples=1, n_iter=1, height=SIDE, width=SIDE, dtype="float32",
        controls=[{"kind": "seg", "image": colours}], control_ckpt=[control],
    )  # fmt: skip
    ((found,),) = [batch.maps for batch in generate(model, request)]
    assert found.shape == (SIDE, SIDE, 3) and len(np.unique(found.reshape(-1, 3), axis=0)) == 2


def test_a_given_depth_map_is_cropped_with_its_image(tmp_path):
    """Its right half is not seen where the image's is not."""
    np.save(tmp_path / "depth.npy", np.arange(128.0)[None].repeat(64, 0))
    unit = {"kind": "depth", "image": pixels(3, 64, 128, 3), "settings": {"depth": tmp_path / "depth.npy"}}
    (unit,) = read_controls(Txt2Img(controls=[unit])).controls
    found = Steer(unit, ControlNet, unit.image.values).map(64, 64)
    rows = np.trunc(255 * (np.arange(64) / 63)).astype(np.uint8)       # columns 32 to 95 of the depth
    assert found.shape == (64, 64, 3) and np.abs(found[0, :, 0].astype(int) - rows).max() <= 1


def test_the_device_is_free_after_an_annotator_ran(monkeypatch):
    moves = []
    annotator = find("hed")()
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, where: moves.append(str(where)) or self)
    vars(annotator)["network"] = torch.nn.Identity()
    annotator.run(np.zeros((8, 8, 3)))
    annotator.release()
    assert moves[-1] == "cpu" and len(moves) == 2


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_control_acts_with_every_sampler(model_of, sampler):
    options = {"sampler": sampler, "steps": 4}
    whole = latents_of(model_of, "sd1", Txt2Img, **options)
    unit = {"kind": "map", "image": pixels(3, SIDE, SIDE, 3)}
    early, late = (
        latents_of(model_of, "sd1", Txt2Img, **options, controls=[unit | part])
        for part in ({"end": 0.5}, {"start": 0.5})
    )
    none = latents_of(model_of, "sd1", Txt2Img, 0.0, **options)
    found = [whole, early, late, none]
    for i, one in enumerate(found):
        assert torch.isfinite(one).all()
        assert not any(torch.equal(one, other) for other in found[:i])


def test_a_batch_is_its_images_alone(model_of):
    exact = {"rng": "per-image", "exact": True}
    both = latents_of(model_of, "sd1", Txt2Img, **exact, n_samples=2)
    alone = [latents_of(model_of, "sd1", Txt2Img, **exact, seed=seed) for seed in (4, 5)]
    assert torch.equal(both, torch.cat(alone))


def test_tiles_see_their_part_of_the_map(model_of):
    """A tile as large as the image is the whole; smaller ones still follow the map."""
    unit = {"kind": "map", "image": pixels(3, 128, 192, 3)}
    wide = {"height": 128, "width": 192, "steps": 1, "controls": [unit]}
    whole = latents_of(model_of, "sd1", Txt2Img, **wide)
    one = latents_of(model_of, "sd1", Txt2Img, **wide, tile=192)
    torch.testing.assert_close(one, whole, atol=1e-3, rtol=0)
    tiles = latents_of(model_of, "sd1", Txt2Img, **wide, tile=128)
    other = wide | {"controls": [{"kind": "map", "image": pixels(8, 128, 192, 3)}]}
    assert not torch.equal(tiles, latents_of(model_of, "sd1", Txt2Img, **other, tile=128))


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddim", "euler_a"])
def test_an_interrupted_run_resumes_bit_by_bit(model_of, sampler):
    """The interval is that of the whole run, not of what is left of it."""
    model, control = model_of("sd1")
    unit = {"kind": "map", "image": pixels(3, SIDE, SIDE, 3), "start": 0.25, "end": 0.75}
    request = Txt2Img(
        prompt="a cat", steps=4, n_samples=2, n_iter=1, seed=4, dtype="float32", sampler=sampler, scale=3.0,
        height=SIDE, width=SIDE, controls=[unit], control_ckpt=[control],
    )  # fmt: skip
    (whole,) = generate(model, request)
    for steps in (1, 2):
        with pytest.raises(StoppedAt) as stopped:
            list(generate(model, request, lambda it, total, n=steps: (next(it) for _ in range(n))))
        (resumed,) = generate(model, request, resume=stopped.value.position)
        assert torch.equal(resumed.latents, whole.latents), steps


def test_the_memory_plan_counts_controlnets(model_of):
    model, _ = model_of("sd1")
    networks = networks_of(model, torch.float32)
    networks.controls = ()
    plain = measure(networks)
    control = ControlNet.for_unet(model.model.diffusion_model)
    networks.controls = (control, control)
    try:
        controlled = measure(networks)
    finally:
        networks.controls = ()
    residuals = 2 * sum(4 * channels for channels in control.skip_channels[:2])    # at full size, of two
    assert controlled.unet > plain.unet + residuals and controlled.image > plain.image
