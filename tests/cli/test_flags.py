"""The published flags with their published defaults, and what they mean together."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from golden_cases import cases
from ldm.cli.flags import parser_of
from ldm.cli.reference_flags import folded
from ldm.config import load_config
from ldm.errors import InputError
from ldm.imaging import metadata
from ldm.jobs import opening
from ldm.jobs.inputs import read_prompts
from ldm.requests import NAMES, Img2Img, Request, Txt2Img, build, find
from ldm.requests.resolving import ModelFacts, resolved, sampler_options

SD = ModelFacts(native_size=512, training_size=512, latent_channels=4, latent_factor=8)


def parsed(cls: type[Request], *words: object) -> Request:
    """Return the request of a command line."""
    args = parser_of(cls, "").parse_args([str(word) for word in words])
    return build(cls, folded(cls, vars(args)))


PUBLISHED = {
    Txt2Img: {
        "prompt": "a professional photograph of an astronaut riding a triceratops",
        "outdir": "outputs/txt2img-samples",
        "steps": 50,
        "fixed_code": False,
        "sampler": "ddim",
        "schedule": "reference",
        "eta": 0.0,
        "n_iter": 3,
        "n_samples": 3,
        "n_rows": 0,
        "scale": 9.0,
        "from_file": None,
        "seed": 42,
        "dtype": "auto",
        "repeat": 1,
    },
    Img2Img: {
        "prompt": "a painting of a virus monster playing guitar",
        "init_img": None,
        "outdir": "outputs/img2img-samples",
        "steps": 50,
        "fixed_code": False,
        "sampler": "ddim",
        "schedule": "reference",
        "eta": 0.0,
        "n_iter": 1,
        "n_samples": 2,
        "n_rows": 0,
        "scale": 9.0,
        "strength": 0.8,
        "from_file": None,
        "seed": 42,
        "dtype": "auto",
    },
}
SHARED = (
    "--prompt x --outdir o --fixed_code --ddim_eta 0.5 --n_iter 1 --C 4 --f 8 --n_samples 1 --n_rows 2 "
    "--scale 7.5 --from-file f --config c --ckpt k --seed 1 --precision full "
)
COMMAND_LINES = {
    Txt2Img: SHARED
    + "--steps 20 --plms --dpm --H 64 --W 64 --repeat 2 --device cpu --torchscript --ipex --bf16",
    Img2Img: SHARED + "--ddim_steps 20 --init-img i --strength 0.5",
}


@pytest.mark.parametrize("cls", PUBLISHED)
def test_defaults_are_the_published_ones(cls):
    request = resolved(parsed(cls), SD)
    assert {name: getattr(request, name) for name in PUBLISHED[cls]} == PUBLISHED[cls]


@pytest.mark.parametrize("cls", COMMAND_LINES)
def test_every_published_flag_is_taken(cls):
    args = vars(parser_of(cls, "").parse_args(COMMAND_LINES[cls].split()))
    expected = {"steps": 20, "latent_channels": 4, "latent_factor": 8, "scale": 7.5, "precision": "full"}
    assert {name: args[name] for name in expected} == expected


def test_published_abbreviations_still_work():
    args = parser_of(Txt2Img, "").parse_args(
        "--prom x --out o --st 5 --sc 2 --se 3 --fr f --co c --ck k --rep 2 --dev cpu --tor --dp --dd 1"
        .split()
    )
    assert (args.prompt, args.outdir, args.steps, args.scale, args.seed) == ("x", "o", 5, 2.0, 3)
    assert (args.from_file, args.config, args.ckpt, args.repeat, args.device) == ("f", "c", "k", 2, "cpu")
    assert args.dpm and args.ddim_eta == 1


@pytest.mark.parametrize("cls", PUBLISHED)
def test_guidance_is_off_unless_asked_for(cls):
    request = parsed(cls)
    assert (request.guidance_rescale, request.guidance_interval, request.dynamic_threshold) == (0, None, None)
    flags = "--guidance-rescale 0.7 --guidance-interval 0.07,0.81 --dynamic-threshold 0.995".split()
    request = parsed(cls, *flags)
    assert request.guidance_rescale == 0.7 and request.dynamic_threshold == 0.995
    assert request.guidance_interval == (0.07, 0.81)


@pytest.mark.parametrize(
    ("flag", "text", "says"),
    [
        ("--guidance-rescale", "1.5", "got '1.5', expected a number from 0 to 1"),
        ("--guidance-rescale", "nan", "from 0 to 1"),
        ("--guidance-interval", "0.8,0.2", "got '0.8,0.2', expected LOW,HIGH with 0 <= LOW < HIGH <= 1"),
        ("--guidance-interval", "0.5,0.5", "LOW < HIGH"),
        ("--guidance-interval", "0.28,5.42", "HIGH <= 1"),
        ("--guidance-interval", "0.5", "LOW,HIGH"),
        ("--guidance-interval", "0.1,0.2,0.3", "LOW,HIGH"),
        ("--guidance-interval", "nan,1", "LOW,HIGH"),
        ("--guidance-interval", "", "LOW,HIGH"),
        ("--dynamic-threshold", "99.5", "got '99.5', expected a number above 0 and at most 1, such as 0.995"),
        ("--dynamic-threshold", "0", "above 0"),
        ("--dynamic-threshold", "nan", "above 0"),
        ("--dynamic-threshold", "x", "above 0"),
    ],
)
def test_impossible_guidance_says_what_is_possible(flag, text, says):
    with pytest.raises(InputError, match=re.escape(says)):
        parser_of(Txt2Img, "").parse_args([flag, text])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "ddim"),
        ({"plms": True}, "plms"),
        ({"dpm": True}, "dpm"),
        ({"plms": True, "dpm": True}, "plms"),
        ({"sampler": "DPM++ 2M"}, "dpmpp_2m"),
        ({"sampler": "plms", "plms": True}, "plms"),
        ({"sampler": "ddim", "plms": True}, None),
        ({"sampler": "eulr"}, None),
        ({"sampler": "eulr", "dpm": True}, None),
        ({"ddim_eta": 0.5}, "ddim"),
        ({"ddim_eta": 0.5, "plms": True}, None),
        ({"ddim_eta": 0.5, "sampler": "dpm"}, None),
    ],
)
def test_sampler(flags, expected):
    if expected:
        assert sampler_options(build(Txt2Img, folded(Txt2Img, flags)))["sampler"] == expected
    else:
        with pytest.raises(InputError):
            sampler_options(build(Txt2Img, folded(Txt2Img, flags)))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "auto"),
        ({"precision": "full"}, "float32"),
        ({"dtype": "float16"}, "float16"),
        ({"bf16": True}, "bfloat16"),
        ({"bf16": True, "precision": "full"}, "bfloat16"),
        ({"bf16": True, "dtype": "float16"}, None),
        ({"precision": "full", "dtype": "float16"}, None),
    ],
)
def test_dtype(flags, expected):
    if expected:
        assert build(Txt2Img, folded(Txt2Img, flags)).dtype == expected
    else:
        with pytest.raises(InputError, match="contradict"):
            folded(Txt2Img, flags)


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\n\n b \n", ["a", "", " b "]),
        ("灯台\n🗼\n".encode(), ["灯台", "🗼"]),
        ("one\u2028line\x0cstill\n".encode(), ["one\u2028line\x0cstill"]),
    ],
    ids=["plain", "crlf", "bom-and-blank", "unicode", "other-separators"],
)
def test_prompt_files(tmp_path, content, prompts):
    (tmp_path / "prompts.txt").write_bytes(content)
    file = "--from-file", tmp_path / "prompts.txt"
    assert read_prompts(parsed(Txt2Img, *file)) == prompts
    twice = [prompt for prompt in prompts for _ in range(2)]
    assert read_prompts(parsed(Txt2Img, *file, "--repeat", 2)) == twice


def test_one_prompt_fills_a_batch():
    assert read_prompts(parsed(Txt2Img, "--prompt", "x", "--n_samples", 3)) == ["x"] * 3


@pytest.mark.parametrize(("content", "says"), [(b"a\nb\n\xff\n", "line 3"), (b"", "empty")])
def test_bad_prompt_files_are_named_with_the_line(tmp_path, content, says):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_prompts(parsed(Txt2Img, "--from-file", tmp_path / "prompts.txt"))


def test_the_table_of_samplers_lists_every_one(capsys):
    from ldm.samplers import SAMPLERS

    with pytest.raises(SystemExit, match="0"):
        parser_of(Txt2Img, "").parse_args(["--list-samplers"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *SAMPLERS]


@pytest.mark.parametrize(
    ("schedule", "sampler", "expected"),
    [
        (None, None, "reference"),  # the reference flags: the reference times
        (None, "ddim", "uniform"),
        (None, "plms", "uniform"),
        (None, "dpm", "reference"),  # which are exact
        (None, "unipc", "karras"),
        ("karras", None, "karras"),
        ("trailing", "plms", "trailing"),
        ("reference", "plms", "reference"),
    ],
)
def test_only_the_published_flags_give_the_published_step_counts(schedule, sampler, expected):
    assert sampler_options(Txt2Img(schedule=schedule, sampler=sampler))["schedule"] == expected


def test_a_sampler_that_the_reference_does_not_have_has_no_reference_times():
    with pytest.raises(InputError, match="the reference has no unipc sampler; use it with ddim, plms or dpm"):
        sampler_options(Txt2Img(schedule="reference", sampler="unipc"))


@pytest.mark.parametrize("sampler", [None, "ddim", "euler"])
def test_an_unknown_schedule_names_the_nearest(sampler):
    with pytest.raises(InputError, match="did you mean 'karras'"):
        sampler_options(Txt2Img(schedule="karas", sampler=sampler))


def test_both_scripts_take_both_names_of_the_steps_and_old_abbreviations_keep_their_meaning():
    request = parsed(Img2Img, *"--steps 7 --st 0.5".split())
    assert (request.steps, request.strength) == (7, 0.5)
    request = parsed(Txt2Img, *"--ddim_steps 7 --ddim 0.5".split())
    assert (request.steps, request.eta) == (7, 0.5)


def test_the_demonstration_model_has_a_scale_of_its_own_unless_one_is_given(run, tmp_path, monkeypatch):
    config, checkpoint = (cases("e2e_txt2img")[0].files[name] for name in ("config", "checkpoint"))
    shutil.copytree(Path(config).parent, tmp_path / "model")
    own = tmp_path / "model" / Path(config).name
    own.write_text(own.read_text() + "\ndefaults: {txt2img: {scale: 4}}\n")
    monkeypatch.setattr(opening, "demo_files", lambda name: (own, Path(checkpoint)))
    quick = ("--steps", 1, "--n_iter", 1, "--n_samples", 1, "--no-grid", "--outdir", "o")
    assert run("txt2img.py", *quick).code == 0
    assert run("txt2img.py", *quick, "--scale", 9).code == 0
    assert run("txt2img.py", *quick, "--ckpt", checkpoint, "--config", config).code == 0
    records = [metadata.read_record(tmp_path / "o" / "samples" / f"0000{i}.png") for i in range(3)]
    assert [record["resolved"]["scale"] for record in records] == [4.0, 9.0, 9.0]
    assert ["scale" in record["request"] for record in records] == [False, True, False]


@pytest.mark.parametrize("task", NAMES)
def test_each_demonstration_model_has_what_suits_it_unless_told_otherwise(task):
    cls = find(task)
    defaults = load_config(opening.demo_files(cls.DEMO)[0]).get("defaults", {})
    facts = replace(SD, native_size=128, defaults=defaults)
    own = {"sample": {"scale": 1}, "unclip": {"scale": 3}, "upscale": {"scale": 1, "steps": 10}}
    usual, asked = resolved(cls(), SD), resolved(cls(), facts)
    expected = {"scale": usual.scale, "steps": usual.steps} | own.get(task, {"scale": 4})
    assert (asked.scale, asked.steps) == (expected["scale"], expected["steps"])
    asked = resolved(cls(scale=usual.scale, steps=usual.steps), facts)
    assert (asked.scale, asked.steps) == (usual.scale, usual.steps)


def test_a_prompt_beside_a_prompt_file_is_not_dropped_silently(tmp_path, caplog):
    (tmp_path / "prompts.txt").write_text("a cat")
    file = "--from-file", tmp_path / "prompts.txt"
    assert read_prompts(parsed(Txt2Img, *file)) == ["a cat"] and not caplog.text
    assert read_prompts(parsed(Txt2Img, *file, "--prompt", "a dog")) == ["a cat"]
    assert "--prompt is not used" in caplog.text
