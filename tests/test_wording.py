"""Counted nouns, and the name under which a message calls a script."""

import os
import subprocess
import sys

import pytest

from ldm import wording


@pytest.mark.parametrize(
    "count, noun, said",
    [(0, "image", "0 images"), (1, "image", "1 image"), (2, "image", "2 images"),
     (9876, "step", "9,876 steps"), (2, "UNet evaluation", "2 UNet evaluations"), (2, "batch", "2 batches")],
)  # fmt: skip
def test_a_noun_is_counted(count, noun, said):
    assert wording.counted(count, noun) == said


def test_a_script_is_called_as_the_user_called_it(monkeypatch):
    assert wording.script("txt2img") == "scripts/txt2img.py"
    monkeypatch.setattr(wording, "by_command", True)
    assert wording.script("txt2img") == "sd-txt2img"


def test_an_installed_command_speaks_of_itself(tmp_path):
    """What the installed command runs, with the name that it has there."""
    call = "import sys; sys.argv[0] = 'bin/sd-txt2img'; from ldm.cli import console; console.txt2img()"

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", call, *args]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    shown = run("--help").stdout
    assert shown.startswith("usage: sd-txt2img ") and "txt2img.py" not in shown
    wrong = run("--init-img", "a.png")
    assert wrong.returncode == 2
    assert "sd-txt2img has no --init-img, which is --init-img of sd-img2img" in wrong.stderr
