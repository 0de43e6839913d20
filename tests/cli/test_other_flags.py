"""Flags in any spelling, and the flags, samplers and dtypes of other tools."""

import re

import pytest
import torch

from ldm.cli.convert import main as convert
from ldm.cli.flags import parser_of
from ldm.cli.identify import main as identify
from ldm.cli.merge import main as merge
from ldm.cli.other_flags import ADVICE, SAME, WORDS, fold
from ldm.cli.reference_flags import folded
from ldm.cli.rerun import main as rerun
from ldm.cli.train import main as train
from ldm.cli.watermark import main as watermark
from ldm.errors import InputError
from ldm.requests import NAMES, Controlnet, Img2Img, Inpaint, Txt2Img, build, fields_of, find
from ldm.requests.readers import seed
from ldm.samplers import find_sampler


def parsed(cls, *words):
    return build(cls, folded(cls, vars(parser_of(cls, "").parse_args(words))))


@pytest.mark.parametrize("name", NAMES)
def test_hyphen_and_underscore_are_the_same_in_every_flag(name):
    parser = parser_of(find(name), "")
    for flag in parser._option_string_actions:
        if flag.startswith("--"):
            for spelled in (flag.replace("_", "-"), "--" + flag[2:].replace("-", "_")):
                words = parser._spelled(spelled)
                assert parser._option_string_actions[words[0]] is parser._option_string_actions[flag]
                assert parser._spelled(spelled + "=a_b-c") == [words[0] + "=a_b-c"]


@pytest.mark.parametrize(
    "cls, words, name, value",
    [
        (Txt2Img, "--cfg-scale 3", "scale", 3.0),
        (Txt2Img, "--guidance_scale=3", "scale", 3.0),
        (Txt2Img, "--width 64", "width", 64),
        (Txt2Img, "--num_inference_steps 7", "steps", 7),
        (Img2Img, "--num-inference-steps 7", "steps", 7),
        (Img2Img, "--init_image a.png", "init_img", "a.png"),
        (Img2Img, "--denoising-strength 0.4", "strength", 0.4),
        (Inpaint, "--mask_image a.png", "mask", "a.png"),
        (Txt2Img, "--skip_grid", "no_grid", True),
        (Txt2Img, "--fp16", "dtype", "float16"),
        (Txt2Img, "--dtype bf16", "dtype", "bfloat16"),
        (Txt2Img, "--torch_dtype torch.float16", "dtype", "float16"),
        (Txt2Img, "--karras", "schedule", "karras"),
        (Txt2Img, "--batch-size 2", "n_samples", 2),
        (Txt2Img, "--negative_promp dog", "negative_prompt", "dog"),
        (Txt2Img, "--prompt -cat", "prompt", "-cat"),
        (Txt2Img, "--prompt=--cat_dog", "prompt", "--cat_dog"),
        (Txt2Img, "--negative-prompt -1_2", "negative_prompt", "-1_2"),
    ],
)
def test_a_flag_of_another_tool_is_taken(cls, words, name, value):
    assert getattr(parsed(cls, *words.split()), name) == value


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--scheduler x", "txt2img.py has no --scheduler: --sampler names the method"),
        ("--medvram", "--max-memory"),
        ("--enable_hr", "--hires SCALE"),
        ("--init_img x", "txt2img.py has no --init_img, which is --init-img of img2img.py, "),
        ("--image x", "txt2img.py has no --image, which is --init-img of img2img.py, "),
        ("--denoising-strength 1", "which is --strength of img2img.py, "),
        ("--seamless", "seamless tiles are not supported"),
        ("--Prompt x", "did you mean '--prompt'?"),
        ("-W 64", "txt2img.py has no -W; did you mean '--W'?"),
        ("--smapler ddim", "did you mean '--sampler'?"),
        ("--fp16=1", "no --fp16"),
        ("--zzzzz", "txt2img.py has no --zzzzz; see --help"),
    ],
)
def test_any_other_flag_is_an_error_with_advice(words, expected):
    parser = parser_of(Txt2Img, "")
    parser.prog = "txt2img.py"
    with pytest.raises(InputError, match=re.escape(expected)) as caught:
        parser.parse_args(words.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--controlnet_conditioning_scale 0.5", "--controlnet_conditioning_scale: --control KIND:FILE@W"),
        ("--control-guidance-end 0.5", "--control KIND:FILE[START-END]"),
        ("--strength 0.5", "controlnet.py has no --strength: --control KIND:FILE@WEIGHT"),
        ("--image_resolution 512", "--H and --W"),
        ("--image a.png", "--control KIND:FILE"),
        ("--low_threshold 50", "--control canny,low=N:FILE"),
        ("--controlnet-module canny", "the KIND of --control"),
    ],
)
def test_parameters_of_controlnets_have_advice(words, expected):
    parser = parser_of(Controlnet, "")
    parser.prog = "controlnet.py"
    with pytest.raises(InputError, match=re.escape(expected)) as caught:
        parser.parse_args(words.split())
    assert "\n" not in str(caught.value)


def test_parameters_of_controlnets_with_the_same_meaning_are_taken():
    asked = parsed(
        Controlnet, "--control", "map:a.png", "--controlnet", "b.pth", "--guess_mode", "--a_prompt", "good",
        "--n_prompt", "bad", "--detect_resolution", "512", "--ddim_steps", "7",
    )  # fmt: skip
    assert asked.control_ckpt == ("b.pth",) and asked.guess and asked.added_prompt == "good"
    assert (asked.negative_prompt, asked.control_resolution, asked.steps) == ("bad", 512, 7)


def test_the_table_names_options_that_exist_and_hides_none():
    options = {name for task in NAMES for name in fields_of(find(task))}
    assert set(SAME) <= options
    fields = [each for task in NAMES for each in fields_of(find(task)).values()]
    own = {fold(flag) for each in fields for flag in each.option.flags}
    assert not (ADVICE.keys() | WORDS.keys()) & own
    everything = [name for names in SAME.values() for name in names.split()] + [*WORDS, *ADVICE]
    assert len(everything) == len(set(everything))


def test_a_file_tool_has_no_advice_for_other_scripts(capsys):
    assert identify("", ["--scale", "3"]) == 2
    assert "has no --scale; see --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Euler a", "euler_a"),
        ("k_euler_ancestral", "euler_a"),
        ("sample_dpmpp_2m_sde", "dpmpp_2m_sde"),
        ("DPM++ 3M SDE", "dpmpp_3m_sde"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("PNDMScheduler", "plms"),
        ("UniPCMultistepScheduler", "unipc"),
        ("LMSDiscreteScheduler", "lms"),
    ],
)
def test_samplers_by_the_names_of_other_tools(name, expected):
    assert find_sampler(name).name == expected


def test_a_sampler_with_its_schedule_in_the_name_is_explained():
    with pytest.raises(InputError, match="is --sampler dpmpp_2m --schedule karras here"):
        find_sampler("DPM++ 2M Karras")


def test_a_larger_seed_names_the_one_that_draws_the_same():
    asked = 2**40 + 12_345
    with pytest.raises(InputError, match="the same numbers for 12345"):
        seed(str(asked))
    numbers = [torch.randn(9, generator=torch.Generator().manual_seed(each)) for each in (asked, 12_345)]
    assert torch.equal(*numbers)


@pytest.mark.parametrize(
    "main, words",
    [
        (identify, "~/a.bin"),
        (convert, "~/a.bin ~/b.safetensors"),
        (merge, "~/a.bin ~/a.bin --alpha 0.5 --out=~/b.safetensors"),
        (rerun, "--outdir=~/o ~/a.bin"),
        (watermark, "--img_path=~/a.bin"),
        (train, "--config=~/a.bin"),
        (train, "--resume=~/a.bin"),
    ],
)
def test_a_home_folder_is_found_in_the_paths_of_every_command(main, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"nothing")
    assert main("", words.split()) == 2
    assert str(tmp_path) in capsys.readouterr().err.replace("~/", "")
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("name", NAMES)
def test_a_home_folder_is_found_in_every_path_of_a_request(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for each in fields_of(find(name)).values():
        if each.option.metavar in ("FILE", "DIR") or each.option.is_file:
            value = each.read(["~/a", "b"]) if each.many else each.read("~/a")
            assert value in ("/home/me/a", ("/home/me/a", "b"))


@pytest.mark.parametrize(
    "flag, expected", [("--lr", "train.learning_rate=RATE"), ("--base", "--config FILE")]
)
def test_flags_of_other_trainers_are_explained(flag, expected, capsys):
    assert train("", [flag, "1"]) == 2
    assert f"has no {flag}; write {expected}; see --help" in capsys.readouterr().err
