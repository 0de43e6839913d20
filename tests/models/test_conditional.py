"""What the conditional models tell their UNet, beside diffusers where it does the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm import load_model
from ldm.checkpoint.layouts import ldm_to_parts
from ldm.config import instantiate
from ldm.errors import CheckpointError, ConfigError, InputError
from ldm.models.controlnet import ControlLDM, ControlledUnetModel, ControlNet
from ldm.models.latent_depth import LatentDepth2ImageDiffusion, concat_depth, normalise_depth
from ldm.models.latent_inpaint import LatentInpaintDiffusion
from ldm.models.latent_upscale import LatentUpscaleDiffusion, LatentUpscaleFinetuneDiffusion
from ldm.models.noise_augmentation import (
    CLIPEmbeddingNoiseAugmentation,
    ImageConcatWithNoiseAugmentation,
    SimpleImageConcat,
    read_statistics,
)
from ldm.models.unclip import ImageEmbeddingConditionedLatentDiffusion
from ldm.models.unet import UNetModel
from ldm.samplers.published import DDIMSampler

pytestmark = pytest.mark.usefixtures("no_gradients")

CLOSE = dict(atol=2e-5, rtol=1e-4)
COSINE = {"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
LEVELS = dict(
    model_channels=32, num_res_blocks=2, attention_resolutions=[4, 2, 1], channel_mult=[1, 2, 4, 4],
    num_head_channels=16, use_spatial_transformer=True, use_linear_in_transformer=True, context_dim=40,
    legacy=False,
)  # fmt: skip
TINY = dict(
    model_channels=32, out_channels=4, num_res_blocks=1, attention_resolutions=[1], channel_mult=[1, 1],
    num_head_channels=16, use_spatial_transformer=True, context_dim=8, legacy=False,
)  # fmt: skip


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter noise, the zero-initialised ones too, so that nothing is switched off."""
    for name, parameter in module.named_parameters():
        scale = 0.3 if name.endswith("bias") else parameter[0].numel() ** -0.5
        parameter.copy_(scale * torch.randn_like(parameter) + ("norm" in name and name.endswith("weight")))
    return module.eval()


def given_to(theirs: nn.Module, part: str, prefix: str, ours: nn.Module) -> nn.Module:
    """Give diffusers' module the weights of ours."""
    weights = {prefix + name: x.clone() for name, x in ours.state_dict().items()}
    theirs.load_state_dict(ldm_to_parts(weights)[part], strict=True)
    return theirs.eval()


def diffusers_unet(ours: UNetModel, **settings) -> nn.Module:
    from diffusers import UNet2DConditionModel

    theirs = UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128), layers_per_block=2, attention_head_dim=(2, 4, 8, 8),
        cross_attention_dim=40, use_linear_projection=True, **settings,
    )  # fmt: skip
    return given_to(theirs, "unet", "model.diffusion_model.", ours)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("label", "settings", "theirs"),
    [
        (torch.tensor([20, 349]), {"num_classes": 1000}, {"num_class_embeds": 1000}),
        (
            torch.randn(2, 24),
            {"num_classes": "sequential", "adm_in_channels": 24},
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 24},
        ),
        (
            torch.tensor([0, 999]),
            {"num_classes": 1000, "disable_self_attentions": [True, True, True, False]},
            {"num_class_embeds": 1000, "only_cross_attention": (True, True, True, False)},
        ),
    ],
    ids=["noise level", "image embedding", "upscaler"],
)
def test_a_unet_with_a_label_equals_diffusers(label: Tensor, settings: dict, theirs: dict):
    ours = randomised(UNetModel(in_channels=7, out_channels=4, **LEVELS, **settings))
    x, t, context = torch.randn(2, 7, 16, 8), torch.tensor([1, 981]), torch.randn(2, 5, 40)
    expected = diffusers_unet(ours, in_channels=7, **theirs)(x, t, context, class_labels=label).sample
    torch.testing.assert_close(ours(x, t, context=context, y=label), expected, **CLOSE)


def control_model(**settings) -> ControlLDM:
    return ControlLDM(
        control_stage_config=randomised(ControlNet(in_channels=4, hint_channels=3, **LEVELS)),
        unet_config=randomised(ControlledUnetModel(in_channels=4, out_channels=4, **LEVELS)),
        first_stage_config=nn.Identity(),
        conditioning_key="crossattn",
        **settings,
    )


X_T, T, CONTEXT = torch.randn(2, 4, 8, 16), torch.tensor([1, 981]), torch.randn(2, 5, 40)
HINT = torch.rand(2, 3, 64, 128)


@pytest.mark.few(1)
@pytest.mark.parametrize("pooling", [False, True])
@pytest.mark.parametrize("guess_mode", [False, True])
def test_controlnet_equals_diffusers(guess_mode: bool, pooling: bool):
    from diffusers import ControlNetModel

    model = control_model(global_average_pooling=pooling)
    theirs = ControlNetModel(
        block_out_channels=(32, 64, 128, 128), layers_per_block=2, attention_head_dim=(2, 4, 8, 8),
        cross_attention_dim=40, use_linear_projection=True, global_pool_conditions=pooling,
    )  # fmt: skip
    given_to(theirs, "controlnet", "control_model.", model.control_model)
    down, mid = theirs(X_T, T, CONTEXT, HINT, conditioning_scale=0.7, return_dict=False)
    model.set_control_strength(0.7, guess_mode)
    if guess_mode:  # diffusers has other scales there: from 0.1 to 1, evenly in the logarithm
        assert model.control_scales[:2] == pytest.approx([0.7 * 0.825**12, 0.7 * 0.825**11])
        scales = [scale / 0.7 for scale in model.control_scales]
        down, mid = [x * scale for x, scale in zip(down, scales, strict=False)], mid * scales[12]
    unet = diffusers_unet(model.model.diffusion_model, in_channels=4)
    expected = unet(
        X_T, T, CONTEXT, down_block_additional_residuals=tuple(down), mid_block_additional_residual=mid
    ).sample
    output = model.apply_model(X_T, T, model.conditioning(CONTEXT, HINT))
    torch.testing.assert_close(output, expected, **CLOSE)


def test_without_a_hint_there_is_no_control_and_mid_control_is_in_between():
    model = control_model()
    plain = model.apply_model(X_T, T, model.conditioning(CONTEXT, None))
    torch.testing.assert_close(plain, model.model.diffusion_model(X_T, T, context=CONTEXT))
    full = model.apply_model(X_T, T, model.conditioning(CONTEXT, HINT))
    model.only_mid_control = True
    mid = model.apply_model(X_T, T, model.conditioning(CONTEXT, HINT))
    model.control_scales = [5.0] * 12 + [1.0]  # the others count for nothing
    torch.testing.assert_close(mid, model.apply_model(X_T, T, model.conditioning(CONTEXT, HINT)))
    assert not torch.allclose(plain, mid, atol=1e-3) and not torch.allclose(full, mid, atol=1e-3)


def test_guess_mode_guides_away_from_no_control():
    model = control_model()
    cond = model.conditioning(CONTEXT, HINT)
    uncond = model.unconditional(cond, torch.zeros_like(CONTEXT), guess_mode=True)
    assert cond.controls and not uncond.controls
    sampler = DDIMSampler(model)
    final, steps = sampler.sample(
        2, 2, (4, 8, 16), cond, x_T=X_T, log_every_t=1, unconditional_guidance_scale=3.0,
        unconditional_conditioning=uncond,
    )  # fmt: skip
    t = torch.full((2,), int(sampler.ddim_timesteps[-1]))
    c, u = model.apply_model(X_T, t, cond), model.apply_model(X_T, t, uncond)
    alpha, sigma = model.schedule.alpha_sigma(t, X_T)
    expected = (X_T - sigma * (u + 3 * (c - u))) / alpha
    torch.testing.assert_close(steps["pred_x0"][1], expected, atol=1e-3, rtol=1e-4)
    assert torch.isfinite(final).all()


def test_what_control_cannot_take_is_said():
    model = control_model()
    with pytest.raises(ConfigError, match="expected a dict"):
        model.apply_model(X_T, T, CONTEXT)
    model.control_scales = [1.0] * 12
    with pytest.raises(ConfigError, match="12 entries; expected 13"):
        model.apply_model(X_T, T, model.conditioning(CONTEXT, HINT))


class Halved(nn.Module):
    """An autoencoder of factor 2: every second pixel, without spread."""

    downsampling_factor = 2

    def encode(self, images: Tensor) -> Tensor:
        return images[:, :, ::2, ::2]


def latent_model(cls, in_channels: int, key: str, **settings):
    unet = {"in_channels": in_channels, **TINY, **settings.pop("unet", {})}
    return cls(
        unet_config=randomised(UNetModel(**unet)), first_stage_config=Halved(), conditioning_key=key,
        scale_factor=0.5, **settings,
    ).eval()  # fmt: skip


TEXT, EMPTY = torch.randn(2, 5, 8), torch.zeros(2, 5, 8)


def test_inpainting_sees_the_mask_and_what_is_left():
    model = latent_model(LatentInpaintDiffusion, 8, "hybrid")
    image = torch.randn(1, 3, 8, 12)
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 2:5, 4:9] = 0.5  # counts as painted
    mask[..., 0, :] = 0.49  # does not
    cond = model.conditioning(TEXT, image, mask)
    concat = cond.concat
    painted = (mask >= 0.5)[..., ::2, ::2]  # nearest takes the upper left pixel
    assert concat.shape == (2, 4, 4, 6)
    assert torch.equal(concat[:, :1], painted.float().expand(2, -1, -1, -1))
    left = torch.where(painted, 0.0, 0.5 * image[..., ::2, ::2])
    assert torch.equal(concat[:, 1:], left.expand(2, -1, -1, -1))
    uncond = model.unconditional(cond, EMPTY)
    assert uncond.concat is cond.concat and uncond.context is EMPTY
    assert model.apply_model(torch.randn(2, 4, 4, 6), T, cond).shape == (2, 4, 4, 6)
    with pytest.raises(InputError, match="the image's size"):
        model.conditioning(TEXT, image, mask[..., 1:])


def test_depth_is_stretched_to_the_whole_range_whatever_its_unit():
    model = latent_model(LatentDepth2ImageDiffusion, 5, "hybrid")
    depth = torch.rand(2, 1, 37, 53)
    concat = model.conditioning(TEXT, depth, (6, 4)).concat
    assert concat.shape == (2, 1, 6, 4)
    assert concat.amin(dim=(1, 2, 3)).tolist() == [-1, -1] and concat.amax(dim=(1, 2, 3)).tolist() == [1, 1]
    torch.testing.assert_close(concat_depth(depth * 4000 + 7, (6, 4)), concat, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="without a depth network"):
        model.estimate_depth(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.3, -5.0, 71234.5, 1e30])
def test_a_flat_depth_is_far_and_never_nan(value: float):
    depth = torch.full((2, 1, 30, 41), value)
    depth[1, 0, 3, 3] += max(abs(value), 1.0)
    got = concat_depth(depth, (7, 5))
    assert torch.equal(got[0], torch.full((1, 7, 5), -1.0))
    assert got[1].max() == 1 and torch.isfinite(got).all()
    assert torch.equal(normalise_depth(depth[:1]), torch.full((1, 1, 30, 41), -1.0))


def upscaler(**settings) -> LatentUpscaleDiffusion:
    low_scale = ImageConcatWithNoiseAugmentation({"linear_start": 1e-4, "linear_end": 0.02}, 350)
    settings = {"low_scale_config": low_scale, "unet": {"num_classes": 1000}} | settings
    return latent_model(LatentUpscaleDiffusion, 7, "hybrid-adm", **settings)


def test_the_upscaler_sees_the_noised_picture_and_its_level():
    from diffusers import DDPMScheduler

    model = upscaler()
    image, noise = torch.randn(1, 3, 6, 4), torch.randn(2, 3, 6, 4)
    cond = model.conditioning(TEXT, image, 20, noise)
    theirs = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear")
    levels = torch.tensor([20, 20])
    expected = theirs.add_noise(image.expand(2, -1, -1, -1), noise, levels)
    torch.testing.assert_close(cond.concat, expected)
    assert torch.equal(cond.label, levels) and model.max_noise_level == 350
    uncond = model.unconditional(cond, EMPTY)
    assert uncond.concat is cond.concat and uncond.label is cond.label
    assert model.apply_model(torch.randn(2, 4, 6, 4), T, cond).shape == (2, 4, 6, 4)


@pytest.mark.parametrize("level", [-1, 1000, 2.5, [1, 2, 3]])
def test_a_noise_level_that_there_is_not_is_refused(level):
    given = level if isinstance(level, float) else torch.as_tensor(level)
    with pytest.raises(InputError, match="noise level .*: expected an integer from 0 to 999"):
        upscaler().conditioning(TEXT, torch.zeros(1, 3, 6, 4), given)


def test_the_picture_may_be_handed_over_as_it_is():
    model = upscaler(low_scale_config=SimpleImageConcat())
    image = torch.randn(2, 3, 6, 4)
    noised, level = model.low_scale_model(image)
    assert noised is image and level.tolist() == [0, 0] and model.low_scale_model.state_dict() == {}


def test_the_finetuned_upscaler_stacks_the_tiles_of_the_picture():
    model = latent_model(LatentUpscaleFinetuneDiffusion, 16, "hybrid", reshuffle_patch_size=2)
    image = torch.randn(2, 3, 8, 12)
    stacked = model.conditioning(TEXT, image).concat
    assert stacked.shape == (2, 12, 4, 6)
    for i, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        tile = image[:, :, 4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
        assert torch.equal(stacked[:, 3 * i : 3 * i + 3], tile)
    with pytest.raises(InputError, match="no 2 x 2 equal tiles"):
        model.conditioning(TEXT, image[..., 1:])
    with pytest.raises(InputError, match="takes no noise level"):
        model.conditioning(TEXT, image, 20)


def unclip(width: int = 12, **settings) -> ImageEmbeddingConditionedLatentDiffusion:
    return latent_model(
        ImageEmbeddingConditionedLatentDiffusion, 4, "crossattn-adm", embedder_config=nn.Identity(),
        noise_aug_config=CLIPEmbeddingNoiseAugmentation(COSINE, timestep_dim=width, **settings),
        unet={"num_classes": "sequential", "adm_in_channels": 2 * width},
    )  # fmt: skip


@pytest.mark.parametrize("level", [0, 50, 999])
def test_image_embeddings_are_noised_as_in_diffusers(level: int, tmp_path: Path):
    from diffusers import DDPMScheduler
    from diffusers.models.embeddings import get_timestep_embedding
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    theirs = StableUnCLIPImageNormalizer(12)
    theirs.mean.copy_(torch.randn(1, 12))
    theirs.std.copy_(torch.rand(1, 12) + 0.5)
    torch.save((theirs.mean[0].data, theirs.std[0].data), tmp_path / "statistics.th")
    model = unclip(clip_stats_path=str(tmp_path / "statistics.th"))
    embedding, noise, levels = torch.randn(2, 12), torch.randn(2, 12), torch.tensor([level, level])
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    noised = theirs.unscale(scheduler.add_noise(theirs.scale(embedding), noise, levels))
    position = get_timestep_embedding(levels, 12, flip_sin_to_cos=True, downscale_freq_shift=0)
    label = model.embedding_conditioning(embedding, level, noise)
    torch.testing.assert_close(label, torch.cat([noised, position], dim=1), atol=1e-5, rtol=1e-5)


def test_unclip_tells_the_unconditional_half_zeros():
    model = unclip()
    cond = model.conditioning(TEXT, model.embedding_conditioning(torch.randn(1, 12)))
    uncond = model.unconditional(cond, EMPTY)
    assert cond.label.shape == (2, 24) and torch.equal(uncond.label, torch.zeros(2, 24))
    assert model.apply_model(torch.randn(2, 4, 6, 4), T, cond).shape == (2, 4, 6, 4)


def test_mixes_of_images_are_weighted_means_that_can_be_noised_again():
    model = unclip()
    labels = [model.embedding_conditioning(torch.randn(1, 12)) for _ in range(2)]
    mixed = model.mix(labels, [3.0, 1.0])
    torch.testing.assert_close(mixed, 0.75 * labels[0] + 0.25 * labels[1])
    noise = torch.randn(1, 12)
    again = model.renoise(mixed, 50, noise)
    assert torch.equal(again, model.embedding_conditioning(mixed[:, :12], 50, noise))
    for weights in ([1.0], [1.0, -1.0], []):
        with pytest.raises(InputError, match="one weight for each"):
            model.mix(labels, weights)


def unclip_node(**noise_aug) -> dict:
    return {
        "target": "ldm.models.diffusion.ddpm.ImageEmbeddingConditionedLatentDiffusion",
        "params": {
            "conditioning_key": "crossattn-adm", "first_stage_config": {"target": "torch.nn.Identity"},
            "embedder_config": {"target": "torch.nn.Identity"}, "embedding_dropout": 0.25,
            "noise_aug_config": {
                "target": "ldm.modules.encoders.modules.CLIPEmbeddingNoiseAugmentation",
                "params": {"noise_schedule_config": COSINE, "timestep_dim": 12, **noise_aug},
            },
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {"in_channels": 4, "num_classes": "sequential", "adm_in_channels": 24, **TINY},
            },
        },
    }  # fmt: skip


def test_statistics_come_from_the_checkpoint_or_lie_beside_it(tmp_path: Path):
    mean, std = torch.randn(12), torch.rand(12) + 0.5
    named = unclip_node(clip_stats_path="checkpoints/no_such_folder/statistics.th")
    weights = instantiate(unclip_node()).state_dict()
    file = tmp_path / "model.safetensors"

    def statistics(node: dict) -> tuple[Tensor, Tensor]:
        augmentor = load_model({"model": node}, file, device="cpu", dtype="float32").noise_augmentor
        return augmentor.data_mean[0], augmentor.data_std[0]

    save_file(weights, file)
    with pytest.raises(CheckpointError, match="statistics.th: no such file.*put it next to the checkpoint"):
        statistics(named)
    torch.testing.assert_close(statistics(unclip_node()), (torch.zeros(12), torch.ones(12)))
    torch.save((mean, std), tmp_path / "statistics.th")
    torch.testing.assert_close(statistics(named), (mean, std))
    inside = {"noise_augmentor.data_mean": mean[None] + 1, "noise_augmentor.data_std": std[None]}
    save_file(weights | inside, file)
    torch.testing.assert_close(statistics(named), (mean + 1, std))


@pytest.mark.parametrize(
    "content",
    [
        (torch.ones(3),),
        (torch.ones(3), torch.ones(4)),
        (torch.ones(3), torch.zeros(3)),
        {"mean": torch.ones(3)},
        (torch.tensor([1.0, float("nan")]), torch.ones(2)),
        Path("/"),
        b"no file",
    ],
    ids=["one", "lengths", "zero deviation", "half a dict", "nan", "code", "foreign bytes"],
)
def test_files_that_hold_no_statistics_are_refused(content, tmp_path: Path):
    file = tmp_path / "statistics.th"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"^.*statistics\.th: [^\n]*$"):
        read_statistics(file)


def test_a_depth_model_loads_from_a_file_without_a_depth_network(tmp_path: Path, caplog):
    node = unclip_node()
    node["target"] = "ldm.models.diffusion.ddpm.LatentDepth2ImageDiffusion"
    params = node["params"]
    del params["embedder_config"], params["noise_aug_config"]
    unet = {"in_channels": 5, **TINY}
    params |= {"conditioning_key": "hybrid", "unet_config": params["unet_config"] | {"params": unet}}
    file = tmp_path / "model.safetensors"
    save_file(instantiate(node).state_dict(), file)
    params["depth_stage_config"] = {"target": "ldm.modules.midas.api.MiDaSInference"}
    model = load_model({"model": node}, file, device="cpu", dtype="float32")
    assert model.depth_model is None and "the depth estimator; it is left out" in caplog.text
    with pytest.raises(ConfigError, match="give it a depth map"):
        model.estimate_depth(torch.zeros(1, 3, 8, 8))


def test_third_parties_find_what_they_ask_for():
    assert upscaler().low_scale_model.max_noise_level == 350
    assert unclip().noise_augmentor.max_noise_level == 1000 and unclip().embedder is not None
    control = control_model()
    assert list(control.control_scales) == [1.0] * 13 and control.only_mid_control is False
    assert len(control.control_model.input_blocks) == 12
    depth = latent_model(LatentDepth2ImageDiffusion, 5, "hybrid", depth_stage_config=nn.Identity())
    assert depth.model.conditioning_key == "hybrid" and isinstance(depth.depth_model, nn.Identity)
    assert depth.first_stage_model.downsampling_factor == 2
