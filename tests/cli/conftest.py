"""Run the scripts as a user does: in this process where that will do, else in their own, without network."""

import copy
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from script_files import REPOSITORY, run_script
from tiny_models import V_PREDICTING, tiny_config, tiny_model

from ldm import loading
from ldm.jobs.opening import Models

OFFLINE = REPOSITORY / "tests" / "cli" / "offline.py"


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """Undo what a shell does to jobs in the background, whose children inherit it: SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Records(logging.Handler):
    """Keep what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(scope="session")
def _loaded() -> dict[tuple, tuple]:
    return {}


@pytest.fixture
def load_once(monkeypatch, tmp_path, _loaded) -> None:
    """Let commands load a file that all tests share once: later ones get a copy of the model and its log."""
    original, log = loading.load_model, logging.getLogger("ldm")

    def load_model(config, checkpoint, *device_and_dtype, progress=None, check=None, **options):
        options |= dict(zip(("device", "dtype"), device_and_dtype, strict=False))
        file = Path(checkpoint).resolve()
        if not file.is_file() or tmp_path in file.parents:
            return original(config, checkpoint, progress=progress, check=check, **options)
        content = Path(config).read_text() if isinstance(config, str | Path) else None
        state = file.stat()
        level = log.getEffectiveLevel()
        key = str(config), content, file, state.st_mtime_ns, state.st_size, level, *map(str, options.items())
        if key not in _loaded:
            heard = Records()
            log.addHandler(heard)
            try:
                model = original(config, checkpoint, progress=progress, check=check, **options)
            finally:
                log.removeHandler(heard)
            _loaded[key] = model, heard.records
            return copy.deepcopy(model)     # also now: weights that are mapped lie elsewhere in memory
        model, records = _loaded[key]
        if check is not None:
            check(model)
        for record in records:
            logging.getLogger(record.name).handle(record)
        return copy.deepcopy(model)

    monkeypatch.setattr(loading, "load_model", load_model)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, load_once) -> Callable[..., Outcome]:
    """Run a script in this process, in an empty folder: run("txt2img.py", "--seed", 1)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(script: str, *args: object) -> Outcome:
        capsys.readouterr()
        return Outcome(run_script(script, *args), *capsys.readouterr())

    return run


@pytest.fixture
def stop_at(monkeypatch) -> Callable[..., None]:
    """Send this process a signal at a step, counted over all batches of the runs; None: no longer."""
    from ldm.cli.progress import Bars

    original = Bars.steps

    def arrange(step: int | None, number: int = signal.SIGINT, times: int = 1) -> None:
        seen = 0

        def steps(self, *args):
            nonlocal seen
            for each in original(self, *args):
                seen += 1
                for _ in range(times if seen == step else 0):
                    os.kill(os.getpid(), number)
                    time.sleep(0.01)
                yield each

        monkeypatch.setattr(Bars, "steps", steps)

    return arrange


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Callable[[str], tuple]:
    """Return a function: the kind of a tiny model -> --config and --ckpt."""

    @functools.cache
    def files(kind: str) -> tuple:
        folder = tmp_path_factory.mktemp(kind)
        config = tiny_config(kind, folder)
        tensors = {name: x.contiguous() for name, x in tiny_model(config).state_dict().items()}
        prediction = "v" if kind in V_PREDICTING else "eps"
        save_file(tensors, folder / "model.safetensors", {"sd.prediction": prediction})
        return "--config", config, "--ckpt", folder / "model.safetensors"

    return files


@pytest.fixture(scope="session")
def _opened() -> dict[tuple, Any]:
    return {}


@pytest.fixture
def open_once(monkeypatch, _opened) -> None:
    """Keep the models that commands open: each is opened once in all tests."""
    original = Models.open

    def opened(self, request, *args, **options):
        key = request.ckpt, request.dtype
        if key not in _opened:
            _opened[key] = original(self, request, *args, **options)
        return _opened[key]

    monkeypatch.setattr(Models, "open", opened)


@pytest.fixture
def run_alone(tmp_path) -> Callable[..., Outcome]:
    """Run a script in a process of its own whose sockets refuse to connect, in an empty folder."""

    def run(script: str, *args: object, python_args: tuple[str, ...] = ()) -> Outcome:
        command = [sys.executable, *python_args, str(OFFLINE), str(REPOSITORY / "scripts" / script)]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path.parent / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *(str(arg) for arg in args)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run
