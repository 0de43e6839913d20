"""The published flags with their published defaults, and what they mean together."""

import re
from argparse import Namespace
from pathlib import Path

import pytest
from script_files import load_script

from golden_cases import cases
from ldm.cli import inputs
from ldm.errors import InputError
from ldm.imaging import metadata

PUBLISHED = {
    "txt2img.py": {
        "prompt": "a professional photograph of an astronaut riding a triceratops",
        "outdir": "outputs/txt2img-samples",
        "steps": 50,
        "plms": False,
        "dpm": False,
        "fixed_code": False,
        "ddim_eta": 0.0,
        "n_iter": 3,
        "n_samples": 3,
        "n_rows": 0,
        "scale": 9.0,
        "from_file": None,
        "seed": 42,
        "precision": "autocast",
        "repeat": 1,
        "torchscript": False,
        "ipex": False,
        "bf16": False,
    },
    "img2img.py": {
        "prompt": "a painting of a virus monster playing guitar",
        "init_img": None,
        "outdir": "outputs/img2img-samples",
        "steps": 50,
        "fixed_code": False,
        "ddim_eta": 0.0,
        "n_iter": 1,
        "n_samples": 2,
        "n_rows": 0,
        "scale": 9.0,
        "strength": 0.8,
        "from_file": None,
        "seed": 42,
        "precision": "autocast",
    },
}
SHARED = (
    "--prompt x --outdir o --fixed_code --ddim_eta 0.5 --n_iter 1 --C 4 --f 8 --n_samples 1 --n_rows 2 "
    "--scale 7.5 --from-file f --config c --ckpt k --seed 1 --precision full "
)
COMMAND_LINES = {
    "txt2img.py": SHARED
    + "--steps 20 --plms --dpm --H 64 --W 64 --repeat 2 --device cpu --torchscript --ipex --bf16",
    "img2img.py": SHARED + "--ddim_steps 20 --init-img i --strength 0.5",
}


@pytest.mark.parametrize("script", PUBLISHED)
def test_defaults_are_the_published_ones(script):
    args = vars(load_script(script).make_parser().parse_args([]))
    assert {name: args[name] for name in PUBLISHED[script]} == PUBLISHED[script]


@pytest.mark.parametrize("script", COMMAND_LINES)
def test_every_published_flag_is_taken(script):
    args = load_script(script).make_parser().parse_args(COMMAND_LINES[script].split())
    assert (args.steps, args.C, args.f, args.scale, args.precision) == (20, 4, 8, 7.5, "full")


def test_published_abbreviations_still_work():
    parser = load_script("txt2img.py").make_parser()
    args = parser.parse_args(
        "--prom x --out o --st 5 --sc 2 --se 3 --fr f --co c --ck k --rep 2 --dev cpu --tor --dp --dd 1"
        .split()
    )
    assert (args.prompt, args.outdir, args.steps, args.scale, args.seed) == ("x", "o", 5, 2.0, 3)
    assert (args.from_file, args.config, args.ckpt, args.repeat, args.device) == ("f", "c", "k", 2, "cpu")
    assert args.dpm and args.ddim_eta == 1


@pytest.mark.parametrize("script", PUBLISHED)
def test_guidance_is_off_unless_asked_for(script):
    parser = load_script(script).make_parser()
    args = parser.parse_args([])
    assert (args.guidance_rescale, args.guidance_interval, args.dynamic_threshold) == (0, None, None)
    args = parser.parse_args(
        "--guidance-rescale 0.7 --guidance-interval 0.07,0.81 --dynamic-threshold 0.995".split()
    )
    assert args.guidance_rescale == 0.7 and args.dynamic_threshold == 0.995
    assert args.guidance_interval == (0.07, 0.81)


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
        ("--dynamic-threshold", "99.5", "got '99.5', expected a number above 0, to 1, such as 0.995"),
        ("--dynamic-threshold", "0", "above 0"),
        ("--dynamic-threshold", "nan", "above 0"),
        ("--dynamic-threshold", "x", "above 0"),
    ],
)
def test_impossible_guidance_says_what_is_possible(flag, text, says):
    with pytest.raises(InputError, match=re.escape(says)):
        load_script("txt2img.py").make_parser().parse_args([flag, text])


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
        ({"ddim_eta": 0.5}, "ddim"),
        ({"ddim_eta": 0.5, "plms": True}, None),
        ({"ddim_eta": 0.5, "sampler": "dpm"}, None),
    ],
)
def test_sampler(flags, expected):
    unset = {"sampler": None, "schedule": None, "plms": False, "dpm": False, "ddim_eta": 0.0}
    args = Namespace(**unset | flags)
    if expected:
        assert inputs.chosen_sampler(args) == expected
    else:
        with pytest.raises(InputError):
            inputs.chosen_sampler(args)


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
    args = Namespace(**{"dtype": "auto", "precision": "autocast", "bf16": False, **flags})
    if expected:
        assert inputs.chosen_dtype(args) == expected
    else:
        with pytest.raises(InputError, match="contradict"):
            inputs.chosen_dtype(args)


def parsed(*words: object) -> Namespace:
    return load_script("txt2img.py").make_parser().parse_args([str(word) for word in words])


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
    args = parsed("--from-file", tmp_path / "prompts.txt")
    assert inputs.read_prompts(args) == prompts
    args.repeat = 2
    assert inputs.read_prompts(args) == [prompt for prompt in prompts for _ in range(2)]


def test_one_prompt_fills_a_batch():
    assert inputs.read_prompts(parsed("--prompt", "x", "--n_samples", 3)) == ["x"] * 3


@pytest.mark.parametrize(("content", "says"), [(b"a\nb\n\xff\n", "line 3"), (b"", "empty")])
def test_bad_prompt_files_are_named_with_the_line(tmp_path, content, says):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(InputError, match=says):
        inputs.read_prompts(parsed("--from-file", tmp_path / "prompts.txt"))


def test_the_table_of_samplers_lists_every_one(capsys):
    from ldm.samplers import SAMPLERS

    with pytest.raises(SystemExit, match="0"):
        load_script("txt2img.py").make_parser().parse_args(["--list-samplers"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *SAMPLERS]


@pytest.mark.parametrize(
    ("schedule", "sampler", "expected"),
    [
        (None, None, None),  # the published flags: the published times
        (None, "ddim", "uniform"),
        (None, "plms", "uniform"),
        (None, "dpm", None),  # which are exact
        (None, "unipc", "karras"),
        ("karras", None, "karras"),
        ("trailing", "plms", "trailing"),
    ],
)
def test_only_the_published_flags_give_the_published_step_counts(schedule, sampler, expected):
    args = Namespace(schedule=schedule, sampler=sampler)
    assert inputs.chosen_spacing(args, sampler or "ddim") == expected


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'karras'"):
        inputs.chosen_spacing(Namespace(schedule="karas", sampler=None), "ddim")


def test_both_scripts_take_both_names_of_the_steps_and_old_abbreviations_keep_their_meaning():
    args = load_script("img2img.py").make_parser().parse_args("--steps 7 --st 0.5".split())
    assert (args.steps, args.strength) == (7, 0.5)
    args = load_script("txt2img.py").make_parser().parse_args("--ddim_steps 7 --ddim 0.5".split())
    assert (args.steps, args.ddim_eta) == (7, 0.5)


def test_a_wrong_schedule_is_refused_with_the_sampler():
    args = Namespace(plms=False, dpm=False, sampler=None, ddim_eta=0.0, schedule="karas")
    with pytest.raises(InputError, match="did you mean 'karras'"):
        inputs.chosen_sampler(args)


def test_the_demonstration_model_has_a_scale_of_its_own_unless_one_is_given(run, tmp_path, monkeypatch):
    from ldm.cli import model

    case = cases("e2e_txt2img")[0]
    files = Path(case.files["config"]), Path(case.files["checkpoint"])
    monkeypatch.setattr(model, "demo_files", lambda name: files)
    quick = ("--steps", 1, "--n_iter", 1, "--n_samples", 1, "--no-grid", "--outdir", "o")
    assert run("txt2img.py", *quick).code == 0
    assert run("txt2img.py", *quick, "--scale", 9).code == 0
    assert run("txt2img.py", *quick, "--ckpt", files[1], "--config", files[0]).code == 0
    records = [metadata.read_record(tmp_path / "o" / "samples" / f"0000{i}.png") for i in range(3)]
    assert [record["guidance_scale"] for record in records] == [4.0, 9.0, 9.0]
