"""What overflows half precision is repeated in float32, from the last good latents, and only in that run."""

import copy
import gc
import itertools
import logging
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from requesting import make_images, run_of

from ldm import networks as networks_module
from ldm.backends import BACKENDS
from ldm.backends.compiled import Compiled
from ldm.diffusion.cond import Cond
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import denoiser
from ldm.errors import BadImageError, OutOfMemory
from ldm.models import attention, autoencoder
from ldm.networks import Networks, are_finite, networks_of
from ldm.requests import Img2Img, Txt2Img
from ldm.samplers import SAMPLERS, make_sampler, sample_loop
from ldm.samplers.loop import gaussian
from ldm.tasks.latents import StoppedAt
from ldm.tasks.probe import probe_prediction
from ldm.tasks.run import Halves, KeptNoise

HALVES = [torch.float16, torch.bfloat16]
STEPS = 6


@pytest.fixture
def tiny(tiny_model):
    return copy.deepcopy(tiny_model)


@pytest.fixture
def warnings(caplog):
    """Return the warnings so far."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture
def naive(monkeypatch):
    """Compute as half precision does without any policy: logits and autoencoder in the dtype chosen."""

    def attend(q, k, v, mask=None):
        return ((q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v

    for module in (attention, autoencoder):
        monkeypatch.setattr(module, "attend", attend)
    same = {"text encoder", "UNet", "autoencoder"}
    monkeypatch.setattr(networks_module, "network_dtypes", lambda dtype, _: dict.fromkeys(same, dtype))


def halved(model, dtype):
    """Store the networks' weights in half precision, as loading does."""
    for part in (model.model, model.first_stage_model, model.cond_stage_model):
        part.to(dtype)
    return model


@torch.no_grad()
def scaled(layer, by):
    """Multiply what a layer gives."""
    layer.weight *= by
    if layer.bias is not None:
        layer.bias *= by


def overflowing(layer):
    """Scale a layer until float16 still holds its weights, but no longer what it gives."""
    scaled(layer, 30_000 / float(layer.weight.abs().max()))


def sampled(model, **options):
    """Run the steps of one prompt on random latents; returns the run."""
    run = run_of(model, Txt2Img, prompts=["a"], **options)
    halves = Halves(*map(Cond, run.text.contexts(["a"], one_by_one=False)))
    run.sample(run.sampler, torch.randn(1, 4, 8, 8), halves, gaussian)
    return run


def picture(model, dtype=torch.float32, **settings):
    """Make one picture; returns its batch."""
    options = {"steps": 3, "schedule": "linspace", "height": 16, "width": 16, "seed": 5, "dtype": dtype}
    return next(make_images(model, Txt2Img, prompts=["a red apple"], **options | settings))


def big_logits(model):
    """Let q k pass the largest float16 where q and k do not."""
    for module in model.model.modules():
        if isinstance(module, attention.CrossAttention):
            scaled(module.to_q, 400.0)
            scaled(module.to_k, 400.0)


def big_residual(model):
    """In a residual block of the UNet; the normalisation that follows takes the factor out again."""
    overflowing(model.model.diffusion_model.input_blocks[1][0].in_layers[2])


def big_decoder_attention(model):
    middle = model.first_stage_model.decoder.mid.attn_1
    scaled(middle.q, 3000.0)
    scaled(middle.k, 3000.0)


def big_decoder_level(model):
    overflowing(model.first_stage_model.decoder.up[1].block[0].conv1)


def big_text(model):
    """In the text encoder; its last normalisation takes the factor out again."""
    overflowing(model.cond_stage_model.model.transformer.resblocks[0].mlp.c_proj)


CASES = {
    "attention logits": (big_logits, "UNet", "step 1 of 3"),
    "residual block": (big_residual, "UNet", "step 1 of 3"),
    "decoder attention": (big_decoder_attention, "autoencoder", "decoding"),
    "decoder level": (big_decoder_level, "autoencoder", "decoding"),
    "text encoder": (big_text, "text encoder", "encoding the prompts"),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("spoil, network, where", CASES.values(), ids=CASES)
def test_naive_float16_overflows_and_is_done_again(tiny, naive, warnings, spoil, network, where):
    spoil(tiny)
    exact = picture(tiny)
    made = picture(halved(tiny, torch.float16), torch.float16)
    assert torch.isfinite(made.images).all() and torch.isfinite(made.latents).all()
    (warning,) = warnings()
    assert warning.startswith(f"{where}: float16 gave ") and "float32" in warning
    assert made.computed_in[network].startswith("float32, because float16 gave ")
    assert [k for k, v in made.computed_in.items() if "because" in v] == [network]
    assert exact.computed_in == {}
    if "attention" not in spoil.__name__ and spoil is not big_logits:  # there rounding moves the maximum
        assert (made.images - exact.images).abs().mean() < 0.1


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "spoil", [big_logits, big_decoder_attention, big_decoder_level], ids=lambda spoil: spoil.__name__
)
def test_by_the_policy_nothing_overflows_to_begin_with(tiny, warnings, spoil):
    spoil(tiny)
    made = picture(halved(tiny, torch.float16), torch.float16)
    assert torch.isfinite(made.images).all() and warnings() == []
    assert made.computed_in == {"text encoder": "float16", "UNet": "float16", "autoencoder": "float32"}


@pytest.mark.few(1)
@pytest.mark.parametrize("spoil, network, where", CASES.values(), ids=CASES)
def test_bfloat16_reaches_as_far_as_float32(tiny, naive, warnings, spoil, network, where):
    spoil(tiny)
    made = picture(halved(tiny, torch.bfloat16), torch.bfloat16)
    assert torch.isfinite(made.images).all() and warnings() == [] and made.computed_in == {}


def test_weights_stored_in_half_precision_are_widened(tiny):
    big_residual(tiny)
    networks_of(halved(tiny, torch.float16), torch.float16)
    dtypes = [{p.dtype for p in part.parameters()} for part in (tiny.model, tiny.cond_stage_model)]
    assert dtypes == [{torch.float16}, {torch.float16}]
    sampled(tiny, steps=2, dtype=torch.float16)
    dtypes = [{p.dtype for p in part.parameters()} for part in (tiny.model, tiny.cond_stage_model)]
    assert dtypes == [{torch.float32}, {torch.float16}]


def test_later_batches_start_in_float32_and_say_nothing_more(tiny, warnings):
    big_residual(tiny)
    settings = dict(sampler="ddim", steps=2, dtype=torch.float16)
    halved(tiny, torch.float16)
    one, two = make_images(tiny, Txt2Img, prompts=["a", "b"], seed=5, height=16, width=16, **settings)
    assert len(warnings()) == 1
    assert one.computed_in == two.computed_in and "step 1 of 2" in one.computed_in["UNet"]


@torch.no_grad()
def overflow_late(model, quiet=900, loud=300):
    """Let a residual block overflow float16 from the time `loud` on towards clean latents, not at `quiet`."""
    unet = model.model.diffusion_model
    layer = unet.input_blocks[1][0].emb_layers[1]
    times = torch.tensor([quiet, loud])
    at_quiet, at_loud = F.silu(unet.embed(torch.empty(2, 4, 8, 8), times, None))
    direction = at_loud - at_quiet
    weight = 60_000.0 * direction / (direction @ direction)
    layer.weight[:] = weight
    layer.bias[:] = 20_000.0 - at_quiet @ weight


class Recorded:
    """Noise that remembers what it gave in each step, and gives something else if it is asked again."""

    def __init__(self):
        self.drawn = {}

    def at(self, i, purpose):
        def draw(x):
            eps = torch.randn(x.shape)
            self.drawn.setdefault((i, purpose), []).append(eps)
            return eps

        return draw


class Replayed:
    def __init__(self, drawn):
        self.drawn = drawn

    def at(self, i, purpose):
        again = iter(self.drawn.get((i, purpose), ()))
        return lambda x: next(again)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_goes_on_from_its_last_good_latents(tiny, warnings, name):
    """As if it had been started there in float32: the same memory, the same noise."""
    overflow_late(tiny)
    states, noise = [], Recorded()

    def track(steps, total):
        for step in steps:
            states.append(run.state)
            yield step

    settings = dict(sampler=name, steps=STEPS, dtype=torch.float16, scale=3.0)
    run = run_of(halved(tiny, torch.float16), Txt2Img, prompts=["a"], track=track, **settings)
    cond, uncond = map(Cond, run.text.contexts(["a"], one_by_one=False))
    latents = run.sample(run.sampler, torch.randn(1, 4, 8, 8), Halves(cond, uncond), noise)

    (warning,) = warnings()
    steps = len(run.sampler)
    step = int(warning.split()[1])
    assert warning.startswith(f"step {step} of {steps}: float16 gave ")
    assert warning.endswith(f"; continuing in float32 from step {step}")
    assert 1 < step, "the overflow was to come later"
    assert [state.step for state in states] == list(range(1, steps + 1)), "every step is seen once"

    good = states[step - 2]
    assert good.step == step - 1
    sampler = make_sampler(name, tiny.schedule, STEPS)
    denoise = denoiser(tiny.apply_model, tiny.schedule, tiny.parameterization)
    guided = ClassifierFreeGuidance(denoise, uncond, 3.0)
    expected = sample_loop(
        sampler, guided, good.x_t, cond,
        noise=Replayed(noise.drawn), start=good.step, memory=good.memory,
    )  # fmt: skip
    *_, last = expected
    assert torch.isfinite(latents).all()
    torch.testing.assert_close(latents, last.x_t, rtol=1e-5, atol=1e-5)


def spoil_call(model, monkeypatch, bad, by):
    """Multiply what one call of the UNet gives; returns the count of calls."""
    calls, original = itertools.count(), model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda *args: original(*args) * (1, by)[next(calls) == bad])
    return calls


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bad", [0, 2, STEPS - 1], ids=["first", "third", "last"])
def test_nan_in_one_step(tiny, monkeypatch, warnings, dtype, bad):
    """Also in the last, after which no network looks at the latents but the decoder."""
    exact = picture(tiny, steps=STEPS, eta=1.0)
    calls = spoil_call(tiny, monkeypatch, bad, math.nan)
    made = picture(tiny, dtype, steps=STEPS, eta=1.0)
    name = str(dtype).removeprefix("torch.")
    wanted = f"step {bad + 1} of {STEPS}: {name} gave NaN; continuing in float32 from step {bad + 1}"
    assert warnings() == [wanted]
    assert made.computed_in["UNet"] == f"float32, because {name} gave NaN (step {bad + 1} of {STEPS})"
    assert next(calls) == STEPS + 1
    assert (made.images - exact.images).abs().mean() < 0.1


def test_the_published_draws_are_not_moved_by_a_step_taken_again(tiny, monkeypatch):
    """float32 all along but for one bad step: the picture is the same to the bit."""
    monkeypatch.setattr(networks_module, "autocast", lambda device, dtype: torch.no_grad())
    settings = {"steps": STEPS, "eta": 1.0}
    exact = picture(tiny, **settings)
    spoil_call(tiny, monkeypatch, 2, math.inf)
    made = picture(tiny, torch.float16, **settings)
    assert torch.equal(made.images, exact.images) and "step 3 of 6" in made.computed_in["UNet"]


def test_draws_are_kept_for_one_step_and_purpose():
    numbers = itertools.count()
    draws, x = KeptNoise(lambda x: torch.full_like(x, next(numbers))), torch.zeros(1)

    def drawn(i, purpose, count):
        draw = draws.at(i, purpose)
        return [int(draw(x)) for _ in range(count)]

    assert drawn(0, "step", 2) == [0, 1] and drawn(0, "keep", 1) == [2]
    assert drawn(0, "step", 3) == [0, 1, 3], "again, and one more"
    assert drawn(1, "step", 1) == [4] and drawn(0, "step", 1) == [5]


def test_a_picture_to_start_from_is_encoded_again(tiny, monkeypatch, warnings):
    overflowing(tiny.first_stage_model.encoder.down[0].block[0].conv1)
    same = ("text encoder", "UNet", "autoencoder")
    monkeypatch.setattr(networks_module, "network_dtypes", lambda dtype, _: dict.fromkeys(same, dtype))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    settings = dict(sampler="ddim", steps=3, dtype=torch.float16)
    (batch,) = make_images(
        halved(tiny, torch.float16), Img2Img, init_img=image, prompts=["a"], seed=1, **settings
    )
    (warning,) = warnings()
    assert warning.startswith("encoding the image: float16 gave") and torch.isfinite(batch.images).all()


def test_the_states_of_a_failed_encoding_are_not_kept(tiny, warnings):
    """Of the empty chunk, which fills up shorter prompts, and of the unconditional text."""
    big_text(tiny)
    settings = dict(sampler="ddim", steps=2, dtype=torch.float16)
    run = run_of(halved(tiny, torch.float16), Txt2Img, prompts=["a"], **settings)
    cond, uncond = run.text.contexts(["word " * 100], one_by_one=False)
    assert cond.shape == uncond.shape and cond.dtype == torch.float32
    assert torch.isfinite(cond).all() and torch.isfinite(uncond).all() and len(warnings()) == 1


SPOILT = {
    "UNet": (lambda m: m.model.diffusion_model.input_blocks[1][0].in_layers[2], "step 1 of 3"),
    "autoencoder": (lambda m: m.first_stage_model.decoder.conv_in, "decoding"),
    "text encoder": (lambda m: m.cond_stage_model.model.transformer.resblocks[0].mlp.c_fc, "encoding the"),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("network", SPOILT)
def test_where_float32_fails_too_there_is_no_picture(tiny, dtype, network):
    layer, where = SPOILT[network]
    layer(tiny).weight.data.fill_(3e38)
    with pytest.raises(BadImageError) as caught:
        picture(tiny, dtype)
    message = str(caught.value)
    assert message.startswith(where) and f"the {network} gave" in message and "in float32" in message
    assert "identify.py" in message and "\n" not in message and caught.value.exit_code == 4
    assert ("half precision had failed" in message) == (dtype != torch.float32)


def test_no_room_for_float32_names_the_need(tiny, monkeypatch):
    big_residual(tiny)
    halved(tiny, torch.float16)

    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr(tiny.model, "to", refuse)
    with pytest.raises(OutOfMemory, match=r"step 1 of 2.*the UNet in float32, 0\.\d\d GB of weights alone"):
        sampled(tiny, sampler="plms", steps=2, dtype=torch.float16)


def test_no_room_for_the_step_in_float32_names_the_need(tiny, monkeypatch):
    original, calls = tiny.apply_model, itertools.count()

    def apply_model(*args):
        if next(calls):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return original(*args) * math.nan

    monkeypatch.setattr(tiny, "apply_model", apply_model)
    with pytest.raises(OutOfMemory, match=r"gave NaN \(step 1 of 3\).*no room for the UNet") as caught:
        picture(tiny, torch.bfloat16)
    assert caught.value.exit_code == 6


def test_other_errors_and_memory_in_the_chosen_dtype_pass_through(tiny, monkeypatch):
    def apply_model(*args):
        raise RuntimeError("not enough memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(tiny, "apply_model", apply_model)
    with pytest.raises(RuntimeError, match="tried to allocate"):
        picture(tiny, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_one_bad_number_is_seen_and_large_ones_are_not_bad(dtype):
    x = torch.full((2, 4, 64, 64), 0.9 * torch.finfo(dtype).max, dtype=dtype)
    assert are_finite(torch.zeros(3, dtype=dtype)) and are_finite(x, -x) and are_finite()
    for bad in (math.nan, math.inf, -math.inf):
        spoilt = torch.zeros(2, 4, 64, 64, dtype=dtype)
        spoilt[1, 3, 63, 63] = bad
        assert not are_finite(spoilt) and not are_finite(x, spoilt)
    both = torch.tensor([math.inf, -math.inf], dtype=dtype)
    assert not are_finite(both)


def test_a_run_that_was_stopped_after_it_goes_on_in_float32(tiny, warnings):
    """Where half precision might have been good enough again."""
    big_residual(tiny)
    options = {"steps": 2, "dtype": torch.float16, "prompts": ["a"], "height": 16, "width": 16}
    stop = make_images(
        halved(tiny, torch.float16), Txt2Img, track=lambda steps, total: itertools.islice(steps, 1), **options
    )
    with pytest.raises(StoppedAt) as stopped:
        next(stop)
    position = stopped.value.position
    assert position.state.upcast and position.state.step == 1
    plain = replace(position, state=replace(position.state, upcast=False))
    tiny.model.diffusion_model.input_blocks[1][0].in_layers[2].weight.data /= 1000  # it would do again
    for where, expected in (
        (plain, "float16"),
        (position, "float32, because float16 gave NaN before the run"),
    ):
        (batch,) = make_images(tiny, Txt2Img, resume=where, **options)
        assert batch.computed_in["UNet"].startswith(expected)


def test_what_the_network_predicts_is_told_in_spite_of_an_overflow(tiny, warnings):
    big_residual(tiny)
    overflowing(tiny.first_stage_model.encoder.down[0].block[0].conv1)
    made = probe_prediction(halved(tiny, torch.float16))
    assert math.isfinite(made.agreement_eps) and math.isfinite(made.agreement_v) and not warnings()


def test_infinity_is_called_so(tiny, warnings):
    networks = Networks(tiny, torch.float16)
    networks.upcast("text encoder", "encoding", torch.tensor([1.0, math.inf]))
    assert warnings() == ["encoding: float16 gave infinity; repeated in float32"]


def test_the_dtypes_are_told_when_asked(tiny, caplog):
    caplog.set_level(logging.DEBUG, "ldm.networks")
    Networks(tiny, torch.float16)
    assert "dtypes: text encoder float16, UNet float16, autoencoder float32" in caplog.text


def test_float32_weights_are_left_where_they_are(tiny):
    """They may be mapped from the file."""
    before = [p.data_ptr() for p in tiny.parameters()]
    Networks(tiny, torch.float32)
    assert [p.data_ptr() for p in tiny.parameters()] == before


def weights_of(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def test_an_overflow_leaves_no_trace_in_the_next_request(tiny, warnings):
    """Neither in its dtypes and its record, nor in the weights."""
    big_residual(tiny)
    networks = networks_of(halved(tiny, torch.float16), torch.float16)
    chosen, before = networks.dtypes, weights_of(tiny)
    first = picture(tiny, torch.float16)
    assert "because" in first.computed_in["UNet"] and networks.dtypes["UNet"] == torch.float32
    assert {p.dtype for p in tiny.model.parameters()} == {torch.float32}
    tiny.model.diffusion_model.input_blocks[1][0].in_layers[2].weight.data /= 1000
    second = picture(tiny, torch.float16)
    assert networks_of(tiny) is networks and networks.dtypes == chosen and not networks.has_upcast("UNet")
    assert second.computed_in == {name: str(dtype)[6:] for name, dtype in chosen.items()}
    assert len(warnings()) == 1
    tiny.model.diffusion_model.input_blocks[1][0].in_layers[2].weight.data *= 1000
    picture(tiny, torch.float16)
    networks.begin()
    after = weights_of(tiny)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert [name for name in before if before[name].dtype != after[name].dtype] == []
    assert set(changed) <= {"model.diffusion_model.input_blocks.1.0.in_layers.2.weight"}, "scaled by hand"


@pytest.mark.slow
def test_networks_belong_to_their_model(tiny):
    first = networks_of(tiny, torch.float32)
    assert networks_of(tiny) is first and networks_of(tiny, torch.float32) is first
    assert networks_of(tiny, torch.float16) is not first and networks_of(tiny).dtype == torch.float16
    assert networks_of(copy.deepcopy(tiny)).model is not tiny
    reference = weakref.ref(networks_of(halved(copy.deepcopy(tiny), torch.bfloat16)))
    gc.collect()
    assert reference() is None, "they do not keep a model alive"


class Counted:
    """A backend that counts what it prepares and what it runs."""

    name = "counted"

    def __init__(self):
        self.prepared, self.runs = [], 0

    def prepare(self, network, example):
        self.prepared.append((type(network).__name__, tuple(example[0].shape)))

        def run(*args):
            self.runs += 1
            return network(*args)

        return run


def test_a_backend_prepares_the_unet_once_for_each_shape(tiny):
    expected = picture(tiny)
    backend = Counted()
    networks_of(tiny, torch.float32, backend)
    for _ in range(2):
        assert torch.equal(picture(tiny).images, expected.images)
    assert backend.prepared == [("UNetModel", (2, 4, 2, 2))] and backend.runs == 6
    picture(tiny, height=32)
    assert [shape for _, shape in backend.prepared] == [(2, 4, 2, 2), (2, 4, 4, 2)]
    networks_of(tiny, backend=BACKENDS["eager"]())
    picture(tiny)
    assert backend.runs == 9


@pytest.mark.slow
def test_the_compiled_backend_gives_the_same_or_says_why_not(tiny, warnings):
    expected = picture(tiny)
    networks_of(tiny, torch.float32, Compiled("aot_eager"))
    torch.testing.assert_close(picture(tiny).images, expected.images, atol=1e-5, rtol=0)
    assert warnings() == []
    networks_of(tiny, torch.float32, Compiled("no_such_compiler"))
    assert torch.equal(picture(tiny).images, expected.images)
    (warning,) = warnings()
    assert warning.startswith("UNetModel cannot be compiled (") and warning.endswith("it runs without")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("spoil", [big_logits, big_residual, big_decoder_level, big_text])
def test_on_a_gpu(tiny, dtype, spoil):
    spoil(tiny)
    made = picture(halved(tiny, dtype).cuda(), dtype)
    assert torch.isfinite(made.images).all() and made.latents.device.type == "cuda"
