"""A task is a request file, a task file, a script and one name in a table; everything else follows."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ldm.requests
import ldm.tasks
from ldm.imaging import metadata
from ldm.requests import NAMES, find

REQUEST = '''
from typing import Any

from ldm.requests.base import Request
from ldm.requests.fields import option, request
from ldm.requests.groups import Control, Prompts, PromptSyntax, Sampling, image


@request(outdir="outputs/retouch-samples")
class Retouch(Prompts, Sampling, PromptSyntax, Control, Request):
    """Repaint an image in the colours of others."""

    SECTION = ("image to retouch", "")
    init_img: Any = image("the image to retouch, of any size")
    colours: tuple[Any, ...] = image(
        "the images of the colours; they are mixed", "--colours", default=(), words=True)
    amount: float = option(
        0.5, "--amount", metavar="A", low=0, high=1, help="how much of the colours is taken")
'''
TASK = '''
from collections.abc import Iterator

import numpy as np

from ldm.requests.retouch import Retouch
from ldm.tasks.batch import Batch
from ldm.tasks.run import Run, Task


def retouch(run: Run, request: Retouch) -> Iterator[Batch]:
    colour = np.mean([image.values.mean((0, 1)) for image in request.colours], axis=0)
    values = request.init_img.values * (1 - request.amount) + colour * request.amount
    frame = run.frame(*values.shape[:2])
    encoded = run.encode(values.astype(np.uint8), frame)
    for batch in run.each(frame, run.steps_of(0.9)):
        yield batch.done(batch.denoise(batch.begin(batch.sample_posterior(encoded)), batch.cond()))


TASK = Task(retouch)
'''
SCRIPT = '''"""Retouch an image."""

from ldm.cli import main
from ldm.requests import Retouch

if __name__ == "__main__":
    main(Retouch, __doc__)
'''
OPTIONS = "--init-img", "photo.png", "--prompt", "a cat", "--steps", 3, "--outdir", "o", "--quiet"
COLOURS = "--colours", "red.png", "green.png"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Return the script of a task that was added as CONTRIBUTING.md says."""
    files = {"requests/retouch.py": REQUEST, "tasks/retouch.py": TASK, "scripts/retouch.py": SCRIPT}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    for package in (ldm.requests, ldm.tasks):
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / package.__name__[4:])])
    monkeypatch.setitem(NAMES, "retouch", "Retouch")
    draw = np.random.default_rng(0).integers
    for name, shape in {"photo": (20, 30, 3), "red": (6, 5, 3), "green": (9, 9, 3)}.items():
        Image.fromarray(draw(0, 256, shape, np.uint8)).save(tmp_path / f"{name}.png")
    yield tmp_path / "scripts/retouch.py"
    for package in (ldm.requests, ldm.tasks):
        vars(package).pop("retouch", None)
        sys.modules.pop(f"{package.__name__}.retouch", None)


def test_a_new_task_has_flags_help_metadata_resuming_and_rerun(run, script, tmp_path, tiny_weights, stop_at):
    text = " ".join(run(script, "--help").out.split())
    assert "Retouch an image." in text and "image to retouch:" in text
    assert "--amount A how much of the colours is taken (default: 0.5)" in text
    assert find("retouch").__name__ == "Retouch" and ldm.requests.Retouch is find("retouch")

    command = script, *tiny_weights("sd2"), *OPTIONS, *COLOURS, "--amount", 0.25, "--no-grid"
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    first = tmp_path / "o/samples/00000.png"
    record = metadata.read_record(first)
    assert (record["task"], record["request"]["amount"]) == ("retouch", 0.25)
    inputs = record["inputs"]
    assert sorted(inputs) == ["colours", "init_img"] and inputs["init_img"]["file"] == "photo.png"
    assert [each["file"] for each in inputs["colours"]] == ["red.png", "green.png"]
    with Image.open(first) as image:
        assert image.size == (30, 20)

    files = "--quiet", "--outdir", "again", "--files", Path(tiny_weights("sd2")[3]).parent
    outcome = run("rerun.py", first, *files)
    assert (outcome.code, outcome.out) == (0, f"{first}: equal\n"), outcome.err
    outcome = run("rerun.py", first, *files, "--with", "amount=1")
    assert outcome.code == 0 and "changed as asked" in outcome.out, outcome.err
    assert (tmp_path / "again/samples/00001.png").read_bytes() != first.read_bytes()

    stop_at(1)
    assert run(*command).code == 75
    stop_at(None)
    stopped = script, "--latents", "o/interrupted-00000.safetensors"
    assert "--amount 0.5 contradicts" in run(*stopped, "--amount", 0.5).err
    assert run(*stopped).code == 0
    assert (tmp_path / "o/samples/00001.png").read_bytes() == first.read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--colours is missing: give the images of the colours"),
        (("--colours", "blue.png"), "blue.png"),
        ((*COLOURS, "--amount", 2), "argument --amount: got '2', expected a number from 0 to 1"),
        ((*COLOURS, "--ammount", 1), "--amount"),
    ],
)
def test_its_mistakes_are_refused_before_the_model_is_opened(run, script, flags, message):
    outcome = run(script, *OPTIONS, "--ckpt", "nowhere.ckpt", *flags)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
