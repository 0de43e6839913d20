"""The way of a picture on a GPU that is not there.

Fake tensors have no numbers, but a device and a dtype, and operations refuse a mixture as those of CUDA do.
float16 runs under autocast's own rules for CUDA.
"""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from golden_cases import case
from ldm.config import instantiate, load_config
from ldm.diffusion.cond import Cond
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.loss import diffusion_loss, offset_noise
from ldm.diffusion.prediction import add_noise, denoiser
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.controlnet import ControlLDM, ControlledUnetModel, ControlNet
from ldm.models.latent_depth import LatentDepth2ImageDiffusion
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.latent_inpaint import LatentInpaintDiffusion
from ldm.models.latent_upscale import LatentUpscaleDiffusion
from ldm.models.noise_augmentation import CLIPEmbeddingNoiseAugmentation, ImageConcatWithNoiseAugmentation
from ldm.models.text_clip import FrozenCLIPEmbedder
from ldm.models.unclip import ImageEmbeddingConditionedLatentDiffusion
from ldm.models.unet import UNetModel
from ldm.samplers import DDPM, make_sampler, sample_loop

GPU = "cuda:0"
TINY_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def built():
    return instantiate(load_config(case("e2e_txt2img_ddim").files["config"]).model).eval()


@pytest.fixture
def tiny(built):
    return copy.deepcopy(built)


@pytest.fixture(params=[torch.float32, torch.float16], ids=str)
def dtype(request):
    """The dtype of the weights, with CUDA's autocast for it: `torch.autocast` asks for a real GPU."""
    torch.set_autocast_enabled("cuda", request.param != torch.float32)
    torch.set_autocast_dtype("cuda", torch.float16)
    with torch.no_grad():
        yield request.param
    torch.set_autocast_enabled("cuda", False)


def on_gpu(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replace the weights by fake ones on the GPU, placed as loading would place them."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, device=GPU, dtype=dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, device=GPU, dtype=buffer.dtype)
    return model


def is_on_gpu(x: torch.Tensor, *shape: int) -> bool:
    return str(x.device) == GPU and tuple(x.shape) == shape


@pytest.mark.few(1)
def test_the_networks_agree_on_device_and_dtype(tiny, dtype):
    tokens = tiny.cond_stage_model.tokenize(["a", "b"])
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = on_gpu(tiny, dtype)
        x = torch.randn(2, 4, 8, 8, device=GPU)
        cond = model.cond_stage_model.model(tokens.to(GPU), skip=1)
        assert cond.dtype == dtype
        assert is_on_gpu(model.apply_model(x, torch.full((2,), 5, device=GPU), cond), *x.shape)
        images = model.decode_first_stage(x)
        assert is_on_gpu(images, 2, 3, 8 * model.downsampling_factor, 8 * model.downsampling_factor)
        latents = model.get_first_stage_encoding(model.encode_first_stage(images))
        assert is_on_gpu(latents, *x.shape)


@pytest.mark.few(2)
@pytest.mark.parametrize("layer", ["last", "pooled"])
def test_the_text_encoder_of_sd_1_agrees_on_device_and_dtype(dtype, layer):
    encoder = FrozenCLIPEmbedder(layer=layer, text_config=TINY_CLIP)
    tokens = encoder.tokenize(["a", "b"])
    with FakeTensorMode(allow_non_fake_inputs=True):
        context = on_gpu(encoder, dtype).encode_tokens(tokens.to(GPU))
        assert is_on_gpu(context, 2, 1 if layer == "pooled" else 77, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [("ddim", {"eta": 0.5}), ("plms", {}), ("dpm", {})])
def test_samplers_stay_on_the_gpu(tiny, dtype, name, options):
    sampler = make_sampler(name, tiny.schedule, 4, **options)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = on_gpu(tiny, dtype)
        x, mask = torch.randn(2, 4, 8, 8, device=GPU), torch.ones(2, 1, 8, 8, device=GPU)
        cond = Cond(torch.randn(2, 77, model.model.diffusion_model.context_dim, device=GPU, dtype=dtype))
        guided = ClassifierFreeGuidance(denoiser(model.apply_model, tiny.schedule, "v"), cond, 7.5)
        x_t = sampler.noised(x, 3, torch.randn(x.shape, device=GPU))
        steps = list(sample_loop(sampler, guided, x_t, cond, keep_mask=mask, keep_x_0=x))
        assert len(steps) == 4
        assert all(is_on_gpu(s.x_t, *x.shape) and s.x_t.dtype == torch.float32 for s in steps)


@pytest.mark.slow
@pytest.mark.few(1)
def test_ancestral_sampling_and_the_loss_stay_on_the_gpu(tiny, dtype):
    sampler = DDPM(tiny.schedule, 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = on_gpu(tiny, dtype)
        x_0 = torch.randn(2, 4, 8, 8, device=GPU)
        cond = torch.randn(2, 77, model.model.diffusion_model.context_dim, device=GPU, dtype=dtype)
        denoise = denoiser(model.apply_model, tiny.schedule, "v")
        assert is_on_gpu([*sample_loop(sampler, denoise, x_0, cond)][-1].x_t, *x_0.shape)
        t, eps = torch.randint(1000, (2,), device=GPU), offset_noise(torch.randn_like(x_0), 0.1)
        output = model.apply_model(add_noise(tiny.schedule, x_0, eps, t), t, cond)
        loss = diffusion_loss(tiny.schedule, "v", output, x_0, eps, t, min_snr_gamma=5.0)
        assert is_on_gpu(loss.total) and loss.total.dtype == torch.float32


@pytest.mark.few(1)
def test_a_mixture_is_noticed(tiny, dtype):
    """Or the tests above could not fail."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        decode = on_gpu(tiny, dtype).first_stage_model.decode
        decode(torch.randn(1, 4, 8, 8, device=GPU, dtype=dtype))
        with pytest.raises(RuntimeError):  # another device
            decode(torch.randn(1, 4, 8, 8, dtype=dtype))
        torch.set_autocast_enabled("cuda", False)
        with pytest.raises(RuntimeError):  # another dtype
            decode(torch.randn(1, 4, 8, 8, device=GPU, dtype=torch.bfloat16))


UNET = dict(
    model_channels=32, num_res_blocks=1, attention_resolutions=[1], channel_mult=[1, 1], num_head_channels=16,
    use_spatial_transformer=True, context_dim=8,
)  # fmt: skip
AUTOENCODER = dict(
    double_z=True, z_channels=4, resolution=64, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 1, 1],
    num_res_blocks=1, attn_resolutions=[], dropout=0.0,
)  # fmt: skip


def of_class(cls: type, in_channels: int, key: str, **settings) -> LatentDiffusion:
    unet = {"in_channels": in_channels, "out_channels": 4} | UNET | settings.pop("unet", {})
    network = ControlledUnetModel if cls is ControlLDM else UNetModel
    return cls(
        unet_config=network(**unet), first_stage_config=AutoencoderKL(AUTOENCODER, 4), conditioning_key=key,
        **settings,
    ).eval()  # fmt: skip


def inpainting():
    model = of_class(LatentInpaintDiffusion, 9, "hybrid")
    return model, lambda context: model.conditioning(
        context, torch.randn(1, 3, 64, 64, device=GPU), torch.ones(1, 1, 64, 64, device=GPU),
        torch.randn(2, 4, 8, 8),
    )  # fmt: skip


def depth():
    model = of_class(LatentDepth2ImageDiffusion, 5, "hybrid")
    return model, lambda context: model.conditioning(context, torch.rand(1, 1, 96, 64, device=GPU), (8, 8))


def upscaling():
    low_scale = ImageConcatWithNoiseAugmentation({})
    model = of_class(
        LatentUpscaleDiffusion, 7, "hybrid-adm", low_scale_config=low_scale, unet={"num_classes": 1000}
    )
    return model, lambda context: model.conditioning(context, torch.randn(1, 3, 8, 8, device=GPU), 20)


def unclip():
    model = of_class(
        ImageEmbeddingConditionedLatentDiffusion, 4, "crossattn-adm", embedder_config=nn.Identity(),
        noise_aug_config=CLIPEmbeddingNoiseAugmentation({}, timestep_dim=12),
        unet={"num_classes": "sequential", "adm_in_channels": 24},
    )  # fmt: skip
    return model, lambda context: model.conditioning(
        context, model.embedding_conditioning(torch.randn(1, 12, device=GPU), 20)
    )


def control():
    model = of_class(
        ControlLDM, 4, "crossattn", control_stage_config=ControlNet(hint_channels=3, in_channels=4, **UNET)
    )
    return model, lambda context: model.conditioning(context, torch.rand(1, 3, 64, 64, device=GPU))


@pytest.mark.few(1)
@pytest.mark.parametrize("made", [inpainting, depth, upscaling, unclip, control])
def test_conditional_models_agree_on_device_and_dtype(made, dtype):
    model, conditioning = made()
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu(model, dtype)
        context = torch.randn(2, 5, 8, device=GPU)
        cond = conditioning(context)
        uncond = model.unconditional(cond, torch.zeros_like(context))
        guided = ClassifierFreeGuidance(denoiser(model.apply_model, model.schedule, "v"), uncond, 7.5)
        x = torch.randn(2, 4, 8, 8, device=GPU)
        assert is_on_gpu(guided(x, torch.full((2,), 5, device=GPU), cond).x_0, 2, 4, 8, 8)
