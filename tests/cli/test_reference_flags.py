"""The flags that only the reference scripts have, as options of a request."""

import logging

import pytest

from ldm.cli.flags import parser_of
from ldm.cli.parser import REFERENCE_FLAGS
from ldm.cli.reference_flags import folded
from ldm.errors import InputError
from ldm.requests import NAMES, Img2Img, Inpaint, Txt2Img, build, find

ONLY_HERE = {"plms", "dpm", "ddim_eta", "precision", "bf16", "torchscript", "ipex"}


def fold(cls: type, line: str) -> dict:
    return folded(cls, vars(parser_of(cls, "").parse_args(line.split())))


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", {}),
        ("--plms", {"sampler": "plms", "schedule": "reference"}),
        ("--dpm", {"sampler": "dpm", "schedule": "reference"}),
        ("--plms --dpm", {"sampler": "plms", "schedule": "reference"}),
        ("--plms --schedule karras", {"sampler": "plms", "schedule": "karras"}),
        ("--dpm --sampler dpm", {"sampler": "dpm"}),  # named, so exactly --steps evaluations
        ("--ddim_eta 0.5", {"eta": 0.5}),
        ("--ddim_eta 0", {"eta": 0.0}),
        ("--ddim_eta 0.5 --sampler DDIM", {"sampler": "DDIM", "eta": 0.5}),
        ("--ddim_eta 0 --plms", {"sampler": "plms", "schedule": "reference"}),  # says nothing
        ("--ddim_eta 0.5 --sampler euler_a", {"sampler": "euler_a", "eta": 0.5}),
        ("--ddim_eta 0.5 --eta 0.5", {"eta": 0.5}),
        ("--ddim_eta 0 --eta 0.5", {"eta": 0.5}),
        ("--precision full", {"dtype": "float32"}),
        ("--precision autocast", {}),
        ("--precision autocast --dtype float16", {"dtype": "float16"}),
        ("--precision full --dtype float32", {"dtype": "float32"}),
        ("--bf16 --precision full", {"dtype": "bfloat16"}),
        ("--bf16 --dtype bfloat16", {"dtype": "bfloat16"}),
        ("--ipex", {"channels_last": True}),
        ("--torchscript", {}),
    ],
)
def test_each_is_an_option_of_the_request(line, options):
    assert fold(Txt2Img, line) == options
    assert build(Txt2Img, fold(Txt2Img, line)) == Txt2Img(**options)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--plms --sampler ddim", "--plms and --sampler ddim are different samplers; give one of them"),
        ("--dpm --sampler dpmpp_2m", "--dpm and --sampler dpmpp_2m are different samplers"),
        ("--dpm --sampler eulr", "unknown sampler 'eulr'"),
        ("--eta 0.5 --ddim_eta 0.2", "--eta 0.5 and --ddim_eta 0.2 contradict each other; give one"),
        ("--bf16 --dtype float16", "--bf16 and --dtype float16 contradict each other"),
        ("--precision full --dtype bfloat16", "--precision full and --dtype bfloat16 contradict each other"),
        ("--ddim_eta -1", "argument --ddim_eta: got '-1', expected a number from 0 up"),
        ("--precision half", "argument --precision: invalid choice: 'half'"),
    ],
)
def test_contradictions_and_wrong_values_are_refused(line, says):
    with pytest.raises(InputError, match=says):
        fold(Txt2Img, line)


def test_the_usual_eta_of_a_task_is_ddim_s_alone():
    """Repeating it next to another sampler says nothing, as the reference's default says nothing there."""
    assert fold(Inpaint, "--ddim_eta 1 --sampler euler") == {"sampler": "euler"}
    assert fold(Inpaint, "--ddim_eta 1") == {"eta": 1.0}
    assert fold(Txt2Img, "--ddim_eta 1 --sampler euler") == {"sampler": "euler", "eta": 1.0}


def test_flags_without_effect_say_so(caplog):
    with caplog.at_level(logging.INFO, "ldm"):
        fold(Txt2Img, "--torchscript --ipex")
    assert "--torchscript has no effect" in caplog.text and "--ipex only sets --channels-last" in caplog.text


@pytest.mark.parametrize("task", NAMES)
def test_every_task_takes_them_all_and_nothing_of_them_is_left(task):
    cls = find(task)
    line = "--plms --ddim_eta 0 --precision full --bf16 --torchscript --ipex"
    args = vars(parser_of(cls, "").parse_args(line.split()))
    assert set(args) == ONLY_HERE - {"dpm"}
    assert not ONLY_HERE & fold(cls, line).keys()


@pytest.mark.parametrize("cls", [Txt2Img, Img2Img])
def test_the_flags_of_the_reference_script_are_all_there(cls):
    """--repeat and the size are txt2img's, --init-img and --strength img2img's."""
    flags = set(parser_of(cls, "")._option_string_actions)
    missing = {"--repeat"} if cls is Img2Img else {"--init-img", "--strength"}
    assert REFERENCE_FLAGS - flags == missing
