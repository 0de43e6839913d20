"""A run that is stopped and gone on with gives the pictures of one that was not, for every sampler."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from requesting import make_images, run_of, stop_after
from safetensors.torch import save_file

from ldm.errors import InputError
from ldm.imaging.colour import from_uint8
from ldm.networks import Networks
from ldm.requests import Img2Img, Txt2Img
from ldm.samplers import SAMPLERS
from ldm.tasks.decode import decode_latents
from ldm.tasks.latents import StoppedAt, final_file, read_latents, stopped_file
from ldm.tasks.tiles import Tiling

PROMPTS = ["a", "b", "c"]


def begun(task, model, settings, **options):
    """Start a run of three pictures in batches of two."""
    options |= {"seed": 3, "n_samples": 2} | settings
    if task == "img2img":
        image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
        return make_images(model, Img2Img, init_img=image, prompts=PROMPTS, strength=0.8, **options)
    size = {"height": 16, "width": 16}
    if task == "hires":
        return make_images(model, Txt2Img, prompts=PROMPTS, hires=1.5, hires_strength=0.7, **size, **options)
    return make_images(model, Txt2Img, prompts=PROMPTS, **size, **options)


def stopped(task, model, settings, steps, path, **options):
    """Run until it stops, save that as a file and read it again; returns the batches and the position."""
    made, run = [], begun(task, model, settings, track=stop_after(steps), **options)
    with pytest.raises(StoppedAt) as stop:
        made.extend(iter(lambda: next(run), None))
    path.write_bytes(stopped_file(stop.value.position, {"task": task}))
    return made, read_latents(path).position


def check_equal(got, expected):
    assert [batch.prompts for batch in got] == [batch.prompts for batch in expected]
    for mine, its in zip(got, expected, strict=True):
        assert torch.equal(mine.images, its.images) and torch.equal(mine.latents, its.latents)
        assert (mine.index, mine.iteration, mine.seeds) == (its.index, its.iteration, its.seeds)


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", ["reference", "per-image"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_going_on_is_exact(tiny_model, tmp_path, sampler, rng):
    """In the first batch and, with its memory and draws, in the short second."""
    settings = dict(sampler=sampler, steps=5, rng=rng)
    whole = list(begun("txt2img", tiny_model, settings))
    steps = len(
        run_of(tiny_model, Txt2Img, height=16, width=16, **settings).sampler
    )  # Heun's are fewer than asked for
    for stop in (2, steps + 2):
        made, position = stopped("txt2img", tiny_model, settings, stop, tmp_path / "s.safetensors")
        assert (position.first, position.state.step) == ((0, 2) if stop == 2 else (2, 2))
        check_equal([*made, *begun("txt2img", tiny_model, settings, resume=position)], whole)


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", ["reference", "per-image", "gpu-philox"])
@pytest.mark.parametrize("task", ["img2img", "hires"])
@pytest.mark.parametrize("stop", [1, 5, 8])
def test_every_task_goes_on_exactly(tiny_model, tmp_path, task, rng, stop):
    settings = dict(sampler="euler_a", steps=4, rng=rng)
    whole = list(begun(task, tiny_model, settings, n_iter=2, fixed_code=True))
    options = {"n_iter": 2, "fixed_code": True}
    made, position = stopped(task, tiny_model, settings, stop, tmp_path / "s.safetensors", **options)
    check_equal([*made, *begun(task, tiny_model, settings, resume=position, **options)], whole)


def test_a_run_may_stop_more_than_once(tiny_model, tmp_path):
    settings = dict(sampler="dpmpp_2m_sde", steps=6)
    whole = list(begun("txt2img", tiny_model, settings))
    _, position = stopped("txt2img", tiny_model, settings, 1, tmp_path / "a.safetensors")
    _, position = stopped("txt2img", tiny_model, settings, 3, tmp_path / "b.safetensors", resume=position)
    assert position.state.step == 4
    check_equal(list(begun("txt2img", tiny_model, settings, resume=position)), whole)


def test_a_stop_that_forgets_the_memory_or_the_draws_would_be_seen(tiny_model, tmp_path):
    for sampler in ("dpmpp_2m", "euler_a"):
        settings = dict(sampler=sampler, steps=5)
        whole = list(begun("txt2img", tiny_model, settings))
        _, position = stopped("txt2img", tiny_model, settings, 2, tmp_path / "s.safetensors")
        fresh = torch.Generator().manual_seed(3).get_state()
        draws = position.noise | {"generator": fresh, "cpu_generator": fresh}
        bad = replace(position, state=replace(position.state, memory=()), noise=draws)
        got = next(begun("txt2img", tiny_model, settings, resume=bad))
        assert not torch.equal(got.images, whole[0].images)


def test_a_position_of_another_run_is_refused(tiny_model, tmp_path):
    settings = dict(sampler="ddim", steps=4)
    _, position = stopped("txt2img", tiny_model, settings, 2, tmp_path / "s.safetensors")
    run = make_images(
        tiny_model,
        Txt2Img,
        prompts=PROMPTS,
        seed=3,
        height=32,
        width=16,
        n_samples=2,
        **settings,
        resume=position,
    )
    with pytest.raises(InputError, match="2x4x2x2 before step 3 .* 2x4x4x2 and 4 steps"):
        next(run)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_given_noise_takes_the_place_of_what_is_drawn_and_of_nothing_else(tiny_model, sampler):
    options = {"seed": 9, "height": 16, "width": 16, **dict(sampler=sampler, steps=4, eta=1.0)}
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(9))
    drawn = next(make_images(tiny_model, Txt2Img, prompts=["a"], **options))
    given = next(make_images(tiny_model, Txt2Img, prompts=["a"], latents=noise, **options))
    assert torch.equal(given.images, drawn.images)
    other = next(make_images(tiny_model, Txt2Img, prompts=["a"], latents=noise.flip(-1), **options))
    assert not torch.equal(other.images, drawn.images)


@pytest.mark.parametrize("shape", [(1, 4, 2, 4), (3, 4, 2, 2), (1, 3, 2, 2)])
def test_latents_of_another_shape_are_refused_in_one_line(tiny_model, shape):
    with pytest.raises(InputError, match="expected 2x4x2x2 for this size and batch, or 1x4x2x2"):
        next(begun("txt2img", tiny_model, dict(steps=2), latents=torch.zeros(shape)))


def test_img2img_starts_from_latents_as_from_the_picture(tiny_model):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    options = {"seed": 1, "strength": 0.5, **dict(sampler="ddim", steps=4)}
    posterior = tiny_model.encode_first_stage(from_uint8(image))
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    latents = tiny_model.get_first_stage_encoding(posterior, noise)
    whole = next(make_images(tiny_model, Img2Img, init_img=image, prompts=["a"], **options))
    given = next(make_images(tiny_model, Img2Img, latents=latents.detach(), prompts=["a"], **options))
    assert torch.equal(given.images, whole.images)


def test_finished_latents_decode_to_the_same_bits(tiny_model, tmp_path):
    batch = next(begun("txt2img", tiny_model, dict(sampler="ddim", steps=2)))
    record = {"prompt": "b", "iteration": 0, "batch": 0, "index_in_batch": 1, "images_in_batch": 2}
    (tmp_path / "f.safetensors").write_bytes(
        final_file(batch.latents[1], record | {"height": 16, "width": 16, "kind": "final"})
    )
    (again,) = decode_latents(tiny_model, read_latents(tmp_path / "f.safetensors"), torch.float32)
    assert torch.equal(again.images, batch.images[1:]) and again.prompts == ["b"] and again.offset == 1


@pytest.mark.parametrize(
    "about, images, tile",
    [
        ({}, 3, None),
        ({"resolved": {"exact": False}, "tiling": {"tile": 8, "overlap": 4}}, 3, None),
        ({"resolved": {"exact": True}}, 1, None),
        ({"tiling": {"one_by_one": True}}, 1, None),
        ({"resolved": {"exact": True}, "tiling": {"one_by_one": True, "decoder_tile": 1}}, 1, 1),
        ({"tiling": {"decoder_tile": 2}}, 3, 2),
    ],
)
def test_finished_latents_are_decoded_as_they_were(about, images, tile, tiny_model, tmp_path, monkeypatch):
    record = {"prompt": "b", "iteration": 0, "batch": 4, "index_in_batch": 2, "images_in_batch": 3}
    record |= {"height": 16, "width": 16, "kind": "final"} | about
    (tmp_path / "f.safetensors").write_bytes(final_file(torch.ones(4, 2, 2), record))
    seen, decode = [], Networks.decode

    def watched(self, latents, tile=None):
        seen.append((len(latents), tile))
        return decode(self, latents, tile)

    monkeypatch.setattr(Networks, "decode", watched)
    (again,) = decode_latents(tiny_model, read_latents(tmp_path / "f.safetensors"), torch.float32)
    assert seen == [(images, tile)] and again.images.shape == (1, 3, 16, 16)
    assert (again.index, again.offset, again.tiling) == (4, 2, Tiling(**about.get("tiling", {})))


@pytest.mark.parametrize("about", [{"tiling": {"decoder_tile": 0}}, {"tiling": {"x": 1}}, {"tiling": 3},
                                   {"tiling": {"decoder_tile": "2"}}, {"resolved": 3}])  # fmt: skip
def test_a_record_of_impossible_tiles_is_damaged(about, tmp_path):
    record = {"prompt": "b", "iteration": 0, "batch": 4, "index_in_batch": 2, "images_in_batch": 3}
    record |= {"height": 16, "width": 16, "kind": "final"} | about
    (tmp_path / "f.safetensors").write_bytes(final_file(torch.ones(4, 2, 2), record))
    with pytest.raises(InputError, match="its record is damaged"):
        read_latents(tmp_path / "f.safetensors")


def test_files_of_other_programs(tmp_path):
    path = tmp_path / "noise.safetensors"
    save_file({"x": torch.ones(4, 2, 2).half()}, path)
    file = read_latents(path)
    assert file.kind is None and file.latents.shape == (1, 4, 2, 2) and file.latents.dtype == torch.float32
    save_file({"latents": torch.full((1, 4, 2, 2), torch.nan)}, path)
    with pytest.raises(InputError, match="NaN"):
        read_latents(path)
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, path)
    with pytest.raises(InputError, match="holds a, b: expected `latents`"):
        read_latents(path)
    path.write_bytes(b"not latents")
    with pytest.raises(Exception, match="noise.safetensors"):
        read_latents(path)


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "stopped", "step": 1},
        {"kind": "stopped", "step": "x", "first": 0, "stage": 0, "prompts": ["a"], "upcast": False},
        {"kind": "stopped", "step": 1, "first": 0, "stage": 0, "prompts": [], "upcast": False},
        {"kind": "final", "prompt": "a"},
        {"kind": "final", "prompt": "a", "height": 16, "width": 16, "iteration": 0, "batch": 0}
        | {"index_in_batch": 2, "images_in_batch": 2},
    ],
)
def test_a_damaged_record_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "f.safetensors"
    save_file({"latents": torch.zeros(1, 4, 2, 2)}, path, metadata={"ldm": json.dumps(damage)})
    with pytest.raises(InputError, match="f.safetensors: its record is damaged"):
        read_latents(path)
    save_file({"latents": torch.zeros(1, 4, 2, 2)}, path, metadata={"ldm": "{"})
    with pytest.raises(InputError, match="its record is damaged"):
        read_latents(path)
