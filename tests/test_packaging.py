"""A plain `pip install .` carries everything: configurations, scripts, the demo model, the licences."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = (
    "ldm cldm configs scripts setup.py pyproject.toml MANIFEST.in README.md LICENSE NOTICE LICENSES".split()
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the package was installed, without its dependencies."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


def run(site: Path, folder: Path, *arguments: str) -> str:
    """Run Python in `folder` with the installed package first on its path."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed(site: Path, below: str) -> set[str]:
    folder = site / "ldm" / below
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)) for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("below", ["configs", "scripts"])
def test_everything_under_version_control_is_installed(site: Path, below: str):
    tracked = subprocess.run(
        ["git", "ls-files", "-z", below], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    expected = {name.removeprefix(f"{below}/") for name in tracked if name and (ROOT / name).exists()}
    assert expected - installed(site, below) == set()


@pytest.mark.slow
def test_configurations_are_found_in_the_installed_package(site: Path, tmp_path: Path):
    code = "from ldm.config import find_config as f; print(f('configs/stable-diffusion/v2-inference.yaml'))"
    assert run(site, tmp_path, "-c", code).startswith(str(site))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["txt2img", "inpaint", "train", "convert"])
def test_the_installed_scripts_start_from_anywhere(site: Path, tmp_path: Path, name: str):
    command = f"from ldm.cli import console; console.{name}()"
    help_text = run(site, tmp_path, "-c", f"import sys; sys.argv[1:] = ['--help']; {command}")
    assert "usage:" in help_text
    assert "usage:" in run(site, tmp_path, "-m", f"ldm.scripts.{name}", "--help")


@pytest.mark.parametrize("name", ["txt2img", "identify"])
def test_an_editable_installation_runs_the_scripts_of_its_checkout(tmp_path: Path, name: str):
    code = f"import sys; sys.argv[1:] = ['--help']; from ldm.cli import console; console.{name}()"
    assert "usage:" in run(ROOT, tmp_path, "-c", code)


@pytest.mark.slow
def test_nothing_but_the_packages_are_installed(site: Path):
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names <= {"ldm", "cldm", "bin"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "from cldm.model import create_model, load_state_dict",
        "import ldm; from scripts.txt2img import put_watermark, load_model_from_config",
    ],
)
def test_reference_names_are_found_in_the_installed_packages(site: Path, tmp_path: Path, line: str):
    # Of the libraries alone (-I leaves the folder and the environment out), so that no checkout is found.
    code = f"import sys; sys.path.insert(0, {str(site)!r}); {line}; import ldm; print(ldm.__file__)"
    assert run(site, tmp_path, "-I", "-c", code).startswith(str(site))
