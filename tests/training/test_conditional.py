"""The conditional models: what they are shown in training, how they start from a base, what is trained."""

import copy
import itertools

import pytest
import torch
from safetensors.torch import save_file
from training_loop import Loop, changed, sharpen, weights

from demo.discs import Discs
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import denoiser
from ldm.errors import CheckpointError, ConfigError
from ldm.samplers import make_sampler
from ldm.samplers.loop import sample_loop
from ldm.training.extra_inputs import extra_input_of
from ldm.training.fit import build_module
from ldm.training.options import resolve_config
from ldm.training.seeding import generator

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
LABEL = {
    "model.diffusion_model.label_emb.0.2.*": "zero",
    "model.diffusion_model.label_emb.0.0.*": "drawn",
    "embedder.*": "drawn",
}
LEVELS = {"model.diffusion_model.label_emb.weight": "zero"}
TASKS = {
    "inpaint": ("mask", "latent_inpaint.LatentInpaintDiffusion", "hybrid", {"in_channels": 9}, {}),
    "depth": ("depth", "latent_depth.LatentDepth2ImageDiffusion", "hybrid", {"in_channels": 5}, {}),
    "upscale": (
        "small", "latent_upscale.LatentUpscaleDiffusion", "hybrid-adm",
        {"in_channels": 7, "num_classes": 1000}, LEVELS,
    ),
    "unclip": (
        None, "unclip.ImageEmbeddingConditionedLatentDiffusion", "crossattn-adm",
        {"num_classes": "sequential", "adm_in_channels": 32}, LABEL,
    ),
}  # fmt: skip


@pytest.fixture
def conditional(config, arch):
    """Return a function: conditional("inpaint", {"only": [...]}, max_steps=2) -> a training configuration."""

    def make(task: str, options: dict | None = None, **train) -> dict:
        extra, target, key, unet, _ = TASKS[task]
        made = config("diffusion", {"text_dropout": 0.0, **(options or {})}, **train)
        made["data"]["params"]["extra_input"] = extra
        model = made["model"]
        model["target"] = f"ldm.models.{target}"
        model["params"]["conditioning_key"] = key
        model["params"]["unet_config"]["params"].update(unet)
        package = "ldm.models.noise_augmentation"
        if task == "upscale":  # factor 4: one more level
            model["params"]["image_size"] = 4
            model["params"]["first_stage_config"]["params"]["ddconfig"]["ch_mult"] = [1, 2, 2]
            model["params"]["low_scale_config"] = {
                "target": f"{package}.ImageConcatWithNoiseAugmentation",
                "params": {"noise_schedule_config": {}, "max_noise_level": 350},
            }
        if task == "unclip":
            tower = "ldm.models.image_clip.FrozenOpenCLIPImageEmbedder"
            schedule = {"beta_schedule": "squaredcos_cap_v2"}
            augmentation = {
                "target": f"{package}.CLIPEmbeddingNoiseAugmentation",
                "params": {"noise_schedule_config": schedule, "timestep_dim": 16},
            }
            model["params"]["embedder_config"] = {"target": tower, "params": {"arch": arch}}
            model["params"]["noise_aug_config"] = augmentation
        return made

    return make


@pytest.fixture
def base(config, tmp_path):
    """The file of a text-to-image model whose last layer is not zero."""
    model = build_module(resolve_config(config("diffusion", seed=5))).diffusion
    model.model.diffusion_model.out[2].weight.data.normal_(generator=torch.Generator().manual_seed(0))
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    return str(tmp_path / "base.safetensors")


def starting(task: str, base: str) -> dict:
    grown = [] if task == "unclip" else [FIRST]
    return {"ckpt": base, "grow_inputs": grown, "new_tensors": TASKS[task][4]}


@pytest.mark.few(1)
@pytest.mark.parametrize("task", ["inpaint", "depth", "unclip"])
def test_a_start_from_the_base_predicts_what_the_base_does(conditional, config, base, task):
    plain = build_module(resolve_config(config("diffusion", {"ckpt": base}))).diffusion
    module = build_module(resolve_config(conditional(task, starting(task, base))))
    x_t, t = torch.randn(2, 4, 8, 8, generator=generator(1)), torch.tensor([10, 900])
    images, captions, *given = Discs(16, extra_input=TASKS[task][0]).batch(generator(2), 2)
    context = module.encode_text(captions)
    torch.manual_seed(0)
    cond = module.conditioning(context, module.encode_extra(images, given[0] if given else {}))
    for name, value in plain.state_dict().items():
        if name != FIRST:
            assert torch.equal(module.diffusion.state_dict()[name], value), name
    with torch.no_grad():
        expected, got = plain.apply_model(x_t, t, context), module.diffusion.apply_model(x_t, t, cond)
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_an_upscaler_starts_with_zeros_for_the_small_image_and_the_level(conditional, base, config):
    made = conditional("upscale", starting("upscale", base))
    made["model"]["params"]["first_stage_config"]["params"]["ddconfig"]["ch_mult"] = [1, 2]
    model = build_module(resolve_config(made)).diffusion.model.diffusion_model
    assert model.input_blocks[0][0].weight[:, 4:].abs().max() == 0
    assert model.input_blocks[0][0].weight[:, :4].abs().min() > 0
    assert model.label_emb.weight.abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_each_task_overfits_one_sample_and_reaches_every_tensor(conditional, monkeypatch, task):
    short = {"ema_decay": 0.9, "sample_count": 2, "sample_steps": 2}
    made = conditional(task, short, learning_rate=5e-3, batch_size=8)
    made["data"]["params"]["count"] = 1
    loop = Loop(made, monkeypatch)
    sharpen(loop)
    before = weights(loop.module.diffusion)
    losses = loop.run(40)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    moved = changed(before, loop.module.diffusion)
    expected = {name for name, _ in loop.module.diffusion.named_parameters() if name.startswith("model.")}
    assert moved == expected
    figures = loop.module.evaluate(loop.data)
    assert figures == loop.module.evaluate(loop.data), "validation draws the same noise always"
    assert loop.module.sample(loop.data).images.shape == (2, 3, 16, 16)


def test_the_extra_input_is_used(conditional, monkeypatch):
    """After training, what the mask hides changes the prediction, so the channel is no ornament."""
    loop = Loop(conditional("inpaint", learning_rate=4e-3), monkeypatch)
    loop.run(5)
    model, x_t, t = loop.module.diffusion, torch.zeros(1, 4, 8, 8), torch.tensor([500])
    context = loop.module.encode_text([""])
    images, mask = torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    noise = torch.zeros(1, 4, 8, 8)
    with torch.no_grad():
        kept, painted = (
            model.apply_model(x_t, t, model.conditioning(context, images, m, noise)) for m in (mask, mask + 1)
        )
    assert (kept - painted).abs().max() > 1e-4


def test_only_moves_what_its_patterns_fit(conditional, base, monkeypatch):
    only = ["model.diffusion_model.input_blocks.*", "model.diffusion_model.out.*"]
    loop = Loop(conditional("inpaint", starting("inpaint", base) | {"only": only}), monkeypatch)
    before = weights(loop.module.diffusion)
    loop.run(3)
    moved = changed(before, loop.module.diffusion)
    unet = [name for name in before if name.startswith("model.")]
    assert moved == {name for name in unet if name.split(".")[2] in ("input_blocks", "out")}
    assert len(loop.module.ema.shadow_names) == len(moved), "only these are averaged"
    assert build_module(resolve_config(conditional("inpaint"))).named_group("unet").keys() > {
        "unet." + name.removeprefix("model.") for name in moved
    }


@pytest.mark.parametrize(
    "options, said",
    [
        ({"only": ["model.diffusion_model.inptu_blocks.*"]}, "only: .*fits no tensor"),
        ({"grow_inputs": [FIRST]}, "give it"),
        ({"ckpt": "BASE", "grow_inputs": ["model.nothing"]}, "grow_inputs: model.nothing"),
        ({"ckpt": "BASE", "grow_inputs": [FIRST], "new_tensors": {"a.*": "zero"}}, "a.* fits no tensor"),
        ({"ckpt": "BASE", "grow_inputs": [FIRST.replace("weight", "bias")]}, "input_blocks.0.0.bias is"),
        ({"ckpt": "BASE", "new_tensors": {"a.*": "one"}}, "expected zero or drawn"),
    ],
)
def test_what_fits_nothing_is_named(conditional, base, options, said):
    options = {k: base if v == "BASE" else v for k, v in options.items()}
    with pytest.raises(ConfigError, match=said):
        build_module(resolve_config(conditional("inpaint", options)))


def test_a_base_does_not_fit_silently(conditional, base):
    with pytest.raises(CheckpointError, match="misshapen"):
        build_module(resolve_config(conditional("depth", {"ckpt": base})))
    with pytest.raises(CheckpointError, match="missing"):
        build_module(resolve_config(conditional("unclip", {"ckpt": base})))


def test_data_without_the_extra_input_is_refused(conditional, monkeypatch):
    made = conditional("depth")
    made["data"]["params"]["extra_input"] = None
    with pytest.raises(ConfigError, match=r"extra_input=depth"):
        Loop(made, monkeypatch).run(1)


def test_upscaling_draws_levels_below_its_limit_and_noises_accordingly(conditional):
    module = build_module(resolve_config(conditional("upscale")))
    context, extra = torch.zeros(64, 2, 16), torch.ones(64, 3, 4, 4)
    torch.manual_seed(0)
    cond = module.conditioning(context, extra)
    level = cond.label
    assert 0 <= level.min() < 40 and 310 < level.max() < 350
    abar = torch.as_tensor(module.diffusion.low_scale_model.schedule.alphas_cumprod)[level]
    error = (cond.concat - abar.sqrt().float()[:, None, None, None]).std(dim=(1, 2, 3))
    torch.testing.assert_close(error, (1 - abar).sqrt().float(), rtol=0.5, atol=0.01)


def test_embeddings_are_dropped_with_their_level(conditional):
    made = conditional("unclip", {"embedding_dropout": 0.25})
    module = build_module(resolve_config(made))
    torch.manual_seed(0)
    label = module.conditioning(torch.zeros(400, 2, 16), torch.ones(400, 16)).label
    dropped = (label == 0).all(dim=1)
    assert 0.17 < dropped.float().mean() < 0.33
    assert (label[~dropped][:, 16:].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_cache_gives_what_encoding_gives(conditional, monkeypatch, tmp_path, task):
    loop = Loop(conditional(task, {"cache_latents": 8}), monkeypatch)
    module = loop.module
    cache = module.prepare(loop.data, tmp_path, torch.device("cpu"))
    images, _, *given = loop.data.batch(generator(0, "cache", 0), 8)
    torch.manual_seed(1)
    expected = module.encode_extra(images, given[0] if given else {})
    masked = slice(0, 1) if task == "inpaint" else slice(None)  # the rest is a sample of the posterior
    found = cache.extra_inputs[:, masked].float()
    torch.testing.assert_close(found, expected[:, masked], rtol=2e-3, atol=2e-3)
    again = module.read_or_build_cache(loop.data, 8, tmp_path / "cache.safetensors")
    assert torch.equal(again.extra_inputs, cache.extra_inputs)
    moments, captions, given = cache.batch(generator(3), 4)
    loop.batches = iter([{"images": moments, "captions": captions, **given, "step": 0, "micro": 0}])
    assert loop.run(1)[0] > 0


@pytest.mark.few(1)
@pytest.mark.parametrize("task", ["inpaint", "unclip"])
def test_resume_equals_uninterrupted(conditional, monkeypatch, task):
    made = conditional(task, {"ema_decay": 0.9}, batch_size=2)
    loops = [Loop(made, monkeypatch) for _ in range(3)]
    optimizers = [loop.module.make_optimizer("unet") for loop in loops]
    for loop, optimizer in zip(loops, optimizers, strict=True):
        monkeypatch.setattr(loop.module, "optimizer_of", lambda name, optimizer=optimizer: optimizer)
    straight, first, second = loops
    straight.run(4)
    first.run(2)
    second.module.load_trained_state(copy.deepcopy(first.module.trained_state()))
    optimizers[2].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    second.module.step = 2
    second.batches = itertools.islice(second.batches, 2, None)
    second.run(2)
    for name, value in straight.module.diffusion.state_dict().items():
        assert torch.equal(value, second.module.diffusion.state_dict()[name]), name


@pytest.mark.parametrize("task", TASKS)
def test_what_training_conditions_on_is_what_sampling_takes(conditional, task):
    module = build_module(resolve_config(conditional(task)))
    images, captions, *given = Discs(16, extra_input=TASKS[task][0]).batch(generator(2), 2)
    extra = module.encode_extra(images, given[0] if given else {})
    cond = module.extra_input.condition(module.encode_text(captions), extra, torch.randn_like, 0)
    model = module.diffusion
    x_t = torch.randn(2, 4, model.image_size, model.image_size, generator=generator(3))
    denoise = denoiser(model.apply_model, model.schedule, model.parameterization)
    uncond = model.unconditional(cond, model.get_unconditional_conditioning(2))
    guided = ClassifierFreeGuidance(denoise, uncond, 4.0)
    for step in sample_loop(make_sampler("dpm", model.schedule, 2), guided, x_t, cond):
        x_t = step.x_t
    with torch.no_grad():
        images = model.decode_first_stage(x_t)
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()


def test_a_plain_model_has_no_extra_input(config):
    module = build_module(resolve_config(config("diffusion")))
    assert extra_input_of(module.diffusion, 0.25) is None is module.extra_input
