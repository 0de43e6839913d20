"""One step of the network tells eps from v: of trained networks, and of no others."""

import functools

import pytest
import torch
from tiny_models import TASKS, tiny_config, tiny_model
from torch import nn

from golden_cases import cases
from ldm.config import find_config
from ldm.diffusion.loss import target
from ldm.loading import load_model
from ldm.models.unet import UNetModel
from ldm.tasks.probe import judge, probe_prediction, synthetic_images

STEPS = 60
DTYPES = (torch.float32, torch.bfloat16)
END_TO_END = {
    case.entry["files"]["config"]: case
    for case in cases()
    if case.kind.startswith("e2e") and {"config", "checkpoint"} <= case.entry.get("files", {}).keys()
}


@functools.cache
def demo(dtype=torch.float32):
    config, weights = (find_config(f"configs/demo/emoji{end}") for end in (".yaml", ".safetensors"))
    return load_model(config, weights, device="cpu", dtype=dtype)


def probed(model, network):
    """Probe a network in the place of the model's own, which is put back."""
    own = model.model.diffusion_model
    model.model.diffusion_model = network
    try:
        return probe_prediction(model)
    finally:
        model.model.diffusion_model = own


class Wrapped(nn.Module):
    """A network made from another one's input and output."""

    def __init__(self, inner, schedule, formula):
        super().__init__()
        self.inner, self.formula = inner, formula
        self.alphas_cumprod = torch.as_tensor(schedule.alphas_cumprod).float()
        self.downsampling_factor, self.input_blocks = inner.downsampling_factor, inner.input_blocks

    def forward(self, x, t, **inputs):
        alphas_cumprod = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        v = self.inner(x, t, **inputs)
        return self.formula(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), x, v)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_demonstration_model_predicts_v(dtype):
    verdict = probe_prediction(demo(dtype))
    assert verdict.prediction == "v"
    assert verdict.agreement == verdict.agreement_v > 0.75 and verdict.agreement_eps < 0.5


FORMULAS = {
    "eps": (lambda alpha, sigma, x, v: sigma * x + alpha * v, "eps"),
    "v times 3": (lambda alpha, sigma, x, v: 3 * v, "v"),
    "x_0": (lambda alpha, sigma, x, v: alpha * x - sigma * v, None),
    "minus eps": (lambda alpha, sigma, x, v: -(sigma * x + alpha * v), None),
    "minus v": (lambda alpha, sigma, x, v: -v, None),
    "its input": (lambda alpha, sigma, x, v: x, None),
    "its input blurred": (lambda alpha, sigma, x, v: nn.functional.avg_pool2d(x, 3, 1, 1), None),
    "waves": (lambda alpha, sigma, x, v: torch.sin(torch.arange(x.numel()) * 7.0).view(x.shape), None),
    "nothing": (lambda alpha, sigma, x, v: 0 * v, None),
    "NaN": (lambda alpha, sigma, x, v: v * torch.nan, None),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("formula, expected", FORMULAS.values(), ids=FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_else_a_network_may_give(formula, expected, dtype):
    model = demo(dtype)
    wrapped = Wrapped(model.model.diffusion_model, model.schedule, formula)
    assert probed(model, wrapped).prediction == expected


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_tiny_network_trained_for_seconds(prediction):
    """It is trained on other pictures than it is probed on, and knows no text."""
    model = demo()
    torch.manual_seed(3)
    unet = UNetModel(
        image_size=16, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=1,
        channel_mult=[1, 2], attention_resolutions=[], num_heads=1, use_spatial_transformer=True,
        context_dim=256,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        pictures = synthetic_images(64, 64, generator)
        latents = model.get_first_stage_encoding(model.encode_first_stage(pictures).mode())
        context = model.get_learned_conditioning([""])
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    alphas_cumprod = torch.as_tensor(model.schedule.alphas_cumprod).float()
    for _ in range(STEPS):
        x_0 = latents[torch.randint(len(latents), (16,), generator=generator)]
        t = torch.randint(1000, (16,), generator=generator)
        eps = torch.randn(x_0.shape, generator=generator)
        alpha, sigma = (a.sqrt().view(-1, 1, 1, 1) for a in (alphas_cumprod[t], 1 - alphas_cumprod[t]))
        output = unet(alpha * x_0 + sigma * eps, t, context=context.expand(16, -1, -1))
        loss = (output - target(model.schedule, prediction, x_0, eps, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for dtype in DTYPES:
        assert probed(model, unet.eval().to(dtype)).prediction == prediction


@pytest.mark.parametrize("name", END_TO_END)
def test_random_weights_tell_nothing(name):
    case = END_TO_END[name]
    model = load_model(case.files["config"], case.files["checkpoint"], device="cpu", dtype="float32")
    verdict = probe_prediction(model)
    assert verdict.prediction is None and verdict.agreement < 0.3


def test_it_draws_from_its_own_generator_and_is_repeatable():
    model = demo()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = probe_prediction(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert probe_prediction(model) == first


@pytest.mark.parametrize(
    ("eps", "v", "expected"),
    [
        (0.95, 0.35, "eps"), (0.45, 0.8, "v"), (0.45, 0.59, None), (0.7, 0.8, None), (0.85, 0.0, None),
        (0.59, 0.3, None), (0.0, 0.0, None), (-0.9, -0.5, None), (float("nan"), float("nan"), None),
    ],
)  # fmt: skip
def test_only_clear_evidence_counts(eps, v, expected):
    assert judge(eps, v, alpha=0.53).prediction == expected


@pytest.mark.few(3)
@pytest.mark.parametrize("task", TASKS[:-1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_computes_in_float32_whatever_the_weights_are_stored_in(task, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.devices._cpu_features", lambda: {"avx512_bf16": True, "amx_fp16": True})
    model = tiny_model(tiny_config(task, tmp_path)).to(dtype)
    stored = {name: (x.dtype, x.data_ptr()) for name, x in model.state_dict().items()}
    rounded = probe_prediction(model)
    assert {name: (x.dtype, x.data_ptr()) for name, x in model.state_dict().items()} == stored
    assert rounded == probe_prediction(model.float())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
