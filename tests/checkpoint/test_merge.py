"""Merging: the formula, what stays bit for bit, and which models go together."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import entry_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.checkpoint.identity import Identity
from ldm.checkpoint.merge import PART_PREFIXES, Source, merge_metadata, plan_merge, read_source
from ldm.checkpoint.writer import Entry, write_safetensors
from ldm.errors import BadValuesError, CheckpointError, InputError, WrongModelError

CONV = "model.diffusion_model.input_blocks.0.0.weight"
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
TEXT = "cond_stage_model.model.ln_final.weight"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def model(seed, channels=4, width=1024, dtype=torch.float32):
    """Return a few tensors by which a model is told."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {CONV: (8, channels, 3, 3), TO_K: (8, width), VAE: (4, 4), TEXT: (16,), "betas": (10,)}
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return tensors | {POSITIONS: torch.arange(seed, seed + 5)}


def source(tensors, name="a", prediction=None):
    """Return an opened model; its text encoder's width and its input channels say what it is."""
    family = {768: "1.x", 1024: "2.x"}.get(tensors.get(TO_K, torch.empty(0)).shape[-1])
    channels = tensors[CONV].shape[1] if CONV in tensors else None
    task = {4: "txt2img", 9: "inpaint"}.get(channels)
    about = Identity("model", family, task, prediction, in_channels=channels)
    return Source(Path(name), tensors, "raw", about, [])


def merged(*models, alpha=0.5, mode="weighted-sum", **options):
    """Return the tensors of a merge."""
    plan = plan_merge([source(x, "abc"[i]) for i, x in enumerate(models)], alpha, mode, **options)
    result = {entry.name: entry.load() for entry in plan.entries}
    for entry in plan.entries:
        assert (entry.dtype, entry.shape) == (result[entry.name].dtype, tuple(result[entry.name].shape))
    return result


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def same_bits(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(bits(a[name]), bits(b[name])) for name in a
    )


def of_unet(value, dtype):
    return {TO_K: torch.tensor(value, dtype=dtype).clone()}


values = st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(values, values, st.floats(0, 1), st.sampled_from(FLOATS))
def test_the_ends_of_a_weighted_sum_are_the_models(a, b, alpha, dtype):
    size = min(len(a), len(b))
    a, b = of_unet(a[:size], dtype), of_unet(b[:size], dtype)
    assert same_bits(merged(a, b, alpha=0.0), a)
    assert same_bits(merged(a, b, alpha=1.0), b)
    assert same_bits(merged(a, a, alpha=alpha), a)
    low, high = torch.minimum(a[TO_K], b[TO_K]), torch.maximum(a[TO_K], b[TO_K])
    between = merged(a, b, alpha=alpha)[TO_K]
    assert ((low <= between) & (between <= high)).all()


@settings(max_examples=200, deadline=None)
@given(values, values, st.floats(-2, 2), st.sampled_from(FLOATS))
def test_a_difference_of_nothing_adds_nothing(a, b, alpha, dtype):
    size = min(len(a), len(b))
    a, b = of_unet(a[:size], dtype), of_unet(b[:size], dtype)
    assert same_bits(merged(a, b, b, alpha=alpha, mode="add-difference"), a)
    assert same_bits(merged(a, b, a, alpha=0.0, mode="add-difference"), a)
    off = merged(a, b, a, alpha=1.0, mode="add-difference")[TO_K].double() - b[TO_K].double()
    assert (off.abs() <= beyond_float32(a[TO_K], b[TO_K])).all()


def beyond_float32(*operands):
    """Return what float32 may lose of half-precision operands, a value each; other types lose nothing."""
    largest = torch.stack([x.double().abs() for x in operands]).amax(0)
    return largest * 2**-23 * (operands[0].dtype in (torch.float16, torch.bfloat16))


@pytest.mark.parametrize("mode", ["weighted-sum", "add-difference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_value_is_the_formula_rounded_once(mode, dtype):
    a, b, c = (model(seed, dtype=dtype) for seed in range(3))
    result = merged(a, b, *([c] if mode == "add-difference" else []), alpha=0.3, mode=mode)
    for name in (CONV, TO_K, VAE, TEXT):
        x, y, z = (tensors[name].double() for tensors in (a, b, c))
        exact = 0.7 * x + 0.3 * y if mode == "weighted-sum" else x + 0.3 * (y - z)
        off = ((result[name].double() - exact).abs() - beyond_float32(x.to(dtype), y, z)).clamp_min(0)
        assert (off / exact.abs().clamp_min(1e-6)).max() <= torch.finfo(dtype).eps / 2 * 1.001


@pytest.mark.parametrize("alpha", [0.3, -0.7])
def test_the_sign_of_zero_stays(alpha):
    for dtype in FLOATS:
        a, b = of_unet([0.0, -0.0, 1.5, -0.0], dtype), of_unet([3.0, -0.0, 1.5, 0.0], dtype)
        assert same_bits(merged(a, b, b, alpha=alpha, mode="add-difference"), a)


def test_a_difference_beyond_float32_is_computed_in_float64():
    a, b = of_unet([3e38, 1.0], torch.bfloat16), of_unet([-3e38, 2.0], torch.bfloat16)
    result = merged(a, b, alpha=0.5)
    assert result[TO_K].flatten()[:2].tolist() == [0.0, 1.5]


def test_whole_numbers_and_the_schedule_stay_those_of_a():
    a, b = model(0), model(1)
    result = merged(a, b)
    assert torch.equal(result[POSITIONS], a[POSITIONS])
    assert torch.equal(result["betas"], a["betas"])
    assert not torch.equal(result[TEXT], a[TEXT])


def test_a_mask_of_infinities_is_copied():
    mask = {"cond_stage_model.model.attn_mask": torch.full((3, 3), -torch.inf)}
    assert same_bits(merged(model(0) | mask, model(0) | mask), model(0) | mask)


def test_the_wider_type_wins_unless_one_is_asked_for():
    half, single = model(0, dtype=torch.float16), model(1)
    assert merged(half, single)[TO_K].dtype == torch.float32
    result = merged(half, single, dtype=torch.bfloat16)
    assert {name: x.dtype for name, x in result.items()} == dict.fromkeys(half, torch.bfloat16) | {
        POSITIONS: torch.int64
    }


@pytest.mark.parametrize("part, prefix", PART_PREFIXES.items())
def test_only_the_chosen_parts_are_merged(part, prefix):
    a, b = model(0), model(1)
    changed = {name for name, x in merged(a, b, parts=[part]).items() if not torch.equal(x, a[name])}
    assert changed == {name for name in a if name.startswith(prefix)} - {POSITIONS}


def test_the_autoencoder_can_be_another_files():
    a, b, vae = model(0), model(1), model(2)
    result = merged(a, b, vae=vae | {"first_stage_model.loss.logvar": torch.zeros(())})
    assert torch.equal(result[VAE], vae[VAE])
    assert result.keys() == a.keys()
    with pytest.raises(WrongModelError, match="holds no autoencoder"):
        merged(a, b, vae={TEXT: vae[TEXT]})
    with pytest.raises(WrongModelError, match=r"does not fit a: .* \(2, 2\) instead of \(4, 4\)"):
        merged(a, b, vae={VAE: torch.zeros(2, 2)})


def test_inpainting_takes_a_difference_and_keeps_its_own_channels():
    a, b, c = model(0, channels=9), model(1), model(2)
    result = merged(a, b, c, alpha=0.5, mode="add-difference")
    assert torch.equal(result[CONV][:, 4:], a[CONV][:, 4:])
    torch.testing.assert_close(result[CONV][:, :4], a[CONV][:, :4] + 0.5 * (b[CONV] - c[CONV]))
    assert not torch.equal(result[TO_K], a[TO_K])
    plan = plan_merge([source(a, "a"), source(b, "b"), source(c, "c")], 0.5, "add-difference")
    assert plan.notes[:1] == ["a has 9 input channels, b and c 4: the further 5 stay those of a"]


def test_what_one_model_lacks_is_a_s_and_said():
    a, b = model(0), model(1)
    del b[TEXT], a[VAE]
    plan = plan_merge([source(a, "a", "eps"), source(b, "b", "eps")], 0.5)
    assert plan.notes == [
        f"1 tensors that b lacks are kept from a: {TEXT}",
        f"1 tensors that a lacks are left out: {VAE}",
    ]
    result = {entry.name: entry.load() for entry in plan.entries}
    assert torch.equal(result[TEXT], a[TEXT]) and VAE not in result


@pytest.mark.parametrize(
    "models, mode, message",
    [
        ((model(0), model(1, width=768)), "weighted-sum", r"a is an SD 2.x .* and b is an SD 1.x .*one kind"),
        ((model(0, 9), model(1)), "weighted-sum", "a is .* for inpainting .* b is .* for text-to-"),
        ((model(0), model(1, 9), model(2)), "add-difference", "a is .* for text-to-.* b is .* for inp"),
        ((model(0, 9), model(1, 9), model(2)), "add-difference", "c is .* for text-to-"),
        ((model(0), {VAE: torch.zeros(4, 4)}), "weighted-sum", "2 tensors of the UNet in one of them"),
    ],
)
def test_models_of_different_kinds_are_refused(models, mode, message):
    with pytest.raises(WrongModelError, match=message) as caught:
        merged(*models, mode=mode)
    assert "\n" not in str(caught.value)


def test_eps_and_v_are_not_mixed():
    with pytest.raises(WrongModelError, match="a predicts eps and b predicts v; only models of the same"):
        plan_merge([source(model(0), "a", "eps"), source(model(1), "b", "v")], 0.5)
    assert plan_merge([source(model(0), "a", "eps"), source(model(1), "b", None)], 0.5).entries


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_weights_that_are_no_numbers_are_refused(bad, alpha):
    a, b = model(0), model(1)
    for tensors in (a, b):
        tensors[TO_K][3, 4] = bad
    with pytest.raises(BadValuesError, match=f"[ab]: {re.escape(TO_K)} holds NaN or infinite values"):
        merged(a, b, alpha=alpha)


def test_a_result_that_overflows_is_refused():
    a, b, c = ({TO_K: torch.full((2, 2), value)} for value in (6e4, 6e4, -6e4))
    with pytest.raises(BadValuesError, match=r"too large for torch.float16; use --dtype float32"):
        merged(a, b, c, alpha=1.0, mode="add-difference", dtype=torch.float16)


@pytest.mark.parametrize(
    "count, alpha, mode, message",
    [
        (2, 1.5, "weighted-sum", "alpha is 1.5; expected 0 to 1"),
        (2, float("nan"), "weighted-sum", "alpha is nan"),
        (3, float("inf"), "add-difference", "alpha is inf; expected a finite number"),
        (3, 0.5, "weighted-sum", "weighted-sum takes 2 models, got 3"),
        (2, 0.5, "add-difference", "add-difference takes 3 models, got 2"),
        (2, 0.5, "sigmoid", "mode 'sigmoid'; expected weighted-sum or add-difference"),
    ],
)
def test_requests_that_make_no_sense(count, alpha, mode, message):
    with pytest.raises(InputError, match=message):
        merged(*[model(0)] * count, alpha=alpha, mode=mode)
    with pytest.raises(InputError, match="parts unet2; expected some of unet, vae, text"):
        merged(model(0), model(1), parts=["unet2"])


def stored(path, tensors, metadata=None):
    write_safetensors(path, [entry_of(*item) for item in tensors.items()], metadata or {})
    return path


def test_averaged_weights_are_taken_where_asked_for(tmp_path):
    raw, averaged = model(0), model(1)
    copy = {"model_ema." + name[6:].replace(".", ""): averaged[name] for name in (CONV, TO_K)}
    file = stored(tmp_path / "a.safetensors", raw | copy | {"model_ema.decay": torch.tensor(0.99)})
    auto, ema = read_source(file), read_source(file, "ema")
    assert same_bits(auto.tensors, raw) and auto.weights == "raw"
    assert torch.equal(ema.tensors[TO_K], averaged[TO_K]) and torch.equal(ema.tensors[VAE], raw[VAE])
    assert ema.tensors.keys() == raw.keys() and ema.weights == "ema"

    marked = stored(tmp_path / "b.safetensors", raw, {"sd.weights": "ema"})
    assert read_source(marked, "ema").weights == read_source(marked).weights == "ema"
    with pytest.raises(CheckpointError, match="holds only EMA"):
        read_source(marked, "raw")
    with pytest.raises(CheckpointError, match="holds no EMA"):
        read_source(stored(tmp_path / "c.safetensors", raw), "ema")


def test_the_recipe_is_kept(tmp_path):
    a = stored(tmp_path / "a.safetensors", model(0), {"sd.prediction": "v", "sd.family": "2.x", "title": "x"})
    b = stored(tmp_path / "b.safetensors", model(1), {"modelspec.prediction_type": "v"})
    sources = [read_source(a), read_source(b)]
    assert [x.about.prediction for x in sources] == ["v", "v"]
    metadata = merge_metadata(sources, 0.25, "weighted-sum", {a: "1234", b: "5678"}, parts=["unet"])
    recipe = json.loads(metadata.pop("sd.merge"))
    assert metadata == {"format": "pt", "sd.task": "txt2img", "sd.prediction": "v", "sd.weights": "raw"}
    assert recipe == {
        "mode": "weighted-sum",
        "alpha": 0.25,
        "inputs": [
            {"name": "a.safetensors", "weights": "raw", "sha256": {"a.safetensors": "1234"}},
            {"name": "b.safetensors", "weights": "raw", "sha256": {"b.safetensors": "5678"}},
        ],
        "parts": ["unet"],
        "vae": None,
    }


def test_what_is_not_known_to_go_together_is_noted():
    """Two files of SD 2.x may be the one that predicts eps and the one that predicts v."""
    known, unknown = source(model(0), "known", "v"), source(model(1), "unknown")
    assert any(note.startswith("unknown does not say") for note in plan_merge([known, unknown], 0.5).notes)
    assert not plan_merge([known, source(model(1), "b", "v")], 0.5).notes


def test_what_is_usual_is_not_stated(tmp_path):
    """A statement in the file would keep a probe from telling eps from v."""
    sd1 = {CONV: torch.zeros(320, 4, 3, 3), TO_K: torch.zeros(8, 768)}
    sources = [read_source(stored(tmp_path / f"{name}.safetensors", sd1)) for name in "ab"]
    assert [x.about.prediction_source for x in sources] == ["family"] * 2
    digests = dict.fromkeys([x.path for x in sources], "12")
    assert "sd.prediction" not in merge_metadata(sources, 0.25, "weighted-sum", digests)


PEAK = """
import sys, torch
from ldm.checkpoint.merge import plan_merge, read_source
from ldm.checkpoint.writer import write_safetensors
torch.set_num_threads(1)
seen = []
def own_kilobytes():  # without pages of mapped files, which the system takes back when it needs them
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
def merge(a, b, c, target):
    plan = plan_merge([read_source(path) for path in (a, b, c)], 0.5, "add-difference")
    progress = lambda *_: seen.append(own_kilobytes())
    write_safetensors(target, plan.entries, {}, sources=[a, b, c], progress=progress)
merge(*sys.argv[1:4], sys.argv[7])
before = max(seen)
merge(*sys.argv[4:7], sys.argv[7])
print(max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is counted in kB only on Linux")
def test_the_peak_memory_is_a_tensor_and_not_the_models(tmp_path):
    size, count = 1_000_000, 40
    files = []
    for size_, count_ in ((1000, 1), (size, count)):
        for name in "abc":
            file = tmp_path / f"{name}{size_}.safetensors"
            values = torch.full((size_,), float(ord(name)))
            entries = [
                Entry(f"model.diffusion_model.{k}", values.dtype, (size_,), lambda x=values: x)
                for k in range(count_)
            ]
            write_safetensors(file, entries, {})
            files.append(file)
    run = subprocess.run(
        [sys.executable, "-c", PEAK, *files, tmp_path / "out.safetensors"],
        capture_output=True, text=True, check=True,
    )
    # The models have 480 MB, a tensor 4 MB: three are read, one is written; the rest is stretches of float64.
    assert int(run.stdout) < 40_000
