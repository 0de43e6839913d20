"""Each network against what the reference computed from the same weights and inputs."""

import pytest
import torch
from torch import nn

from golden_cases import Case, cases
from ldm.diffusion.timesteps import timestep_embedding
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.gaussian import DiagonalGaussianDistribution
from ldm.models.text_clip import FrozenCLIPEmbedder
from ldm.models.text_openclip import FrozenOpenCLIPEmbedder
from ldm.models.unet import UNetModel

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def golden(kind: str):
    return pytest.mark.parametrize("case", cases(kind), ids=lambda case: case.name)


def loaded(module: nn.Module, case: Case, harmless: tuple[str, ...] = ()) -> nn.Module:
    """Return `module` with the case's weights, in evaluation mode; every key must find its place."""
    weights = {name: x for name, x in case.weights().items() if name not in harmless}
    module.load_state_dict(weights, strict=True)
    return module.eval()


@golden("unet")
def test_unet(case: Case):
    unet = loaded(UNetModel(**case.config["unet"]), case)
    inputs = case.inputs
    case.check("eps", unet(inputs["x"], inputs["t"], context=inputs["context"], y=inputs.get("y")))


def autoencoder(case: Case) -> AutoencoderKL:
    return loaded(AutoencoderKL(case.config["ddconfig"], case.config["embed_dim"]), case)


@golden("vae_encode")
def test_autoencoder_encodes(case: Case):
    posterior = autoencoder(case).encode(case.inputs["image"])
    case.check_all(
        {
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "std": posterior.std,
            "sample": posterior.sample(case.draws[0]),
            "kl": posterior.kl(),
        }
    )


@golden("vae_encode")
def test_the_posterior_draws_from_the_cpu_generator(case: Case):
    posterior = autoencoder(case).encode(case.inputs["image"])
    torch.manual_seed(case.seed)
    case.check("sample", posterior.sample())


@golden("vae_decode")
def test_autoencoder_decodes(case: Case):
    case.check_all({"image": autoencoder(case).decode(case.inputs["z"])})


@golden("vae_eps")
def test_autoencoder_with_activations_small_enough_for_the_norms_epsilon(case: Case):
    vae = autoencoder(case)
    posterior = vae.encode(case.inputs["image"])
    image = vae.decode(case.inputs["z"])
    case.check_all({"mean": posterior.mean, "logvar": posterior.logvar, "image": image})


@golden("gaussian")
def test_gaussian(case: Case):
    moments, other_moments = case.inputs["moments"], case.inputs["other_moments"]
    posterior = DiagonalGaussianDistribution(moments)
    other, halved = (DiagonalGaussianDistribution(x) for x in (other_moments, 0.5 * other_moments))
    case.check_all(
        {
            **{name: getattr(posterior, name) for name in ("mean", "logvar", "std", "var")},
            "kl": posterior.kl(),
            "kl_other": other.kl(halved),
            "nll": other.nll(other.mean + 0.3),
            "sample": posterior.sample(case.draws[0]),
            "mode": posterior.mode(),
        }
    )


@golden("text_openclip")
def test_openclip_text_encoder(case: Case, tmp_path):
    import json

    arch = tmp_path / "tiny.json"
    arch.write_text(json.dumps(case.config["open_clip_config"]))
    encoder = FrozenOpenCLIPEmbedder(arch=str(arch), layer=case.config["layer"])
    loaded(encoder.model, case)
    prompts = case.config["prompts"]
    case.check_all({"tokens": encoder.tokenize(prompts), "z": encoder(prompts)})


@golden("text_clip_hf")
def test_clip_text_encoder(case: Case):
    encoder = FrozenCLIPEmbedder(text_config=case.config["clip_text_config"])
    loaded(encoder.transformer, case)
    ids = case.inputs["input_ids"]
    hidden = encoder.transformer(input_ids=ids, output_hidden_states=True).hidden_states
    case.check_all(
        {
            "last_hidden_state": encoder.encode_tokens(ids),
            "hidden_minus_1": hidden[-1],
            "hidden_minus_2": hidden[-2],
        }
    )


@golden("tokenize")
def test_tokens(case: Case):
    with torch.device("meta"):
        sd1, sd2 = FrozenCLIPEmbedder(), FrozenOpenCLIPEmbedder()
    prompts = case.config["prompts"]
    case.check_all({"sd1_ids": sd1.tokenize(prompts), "sd2_ids": sd2.tokenize(prompts)})


@golden("timestep_embedding")
def test_timestep_embedding(case: Case):
    period = case.config["max_period"]
    t = case.inputs["t"]
    case.check_all({f"dim{dim}": timestep_embedding(t, dim, period) for dim in case.config["dims"]})
