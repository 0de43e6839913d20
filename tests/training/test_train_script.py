"""scripts/train.py: the real command, for every method, stopped in every way."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from script_files import REPOSITORY

import ldm
from ldm.cli.train import main as train_main
from ldm.training import callbacks
from ldm.training.fit import FOLDER_VARIABLE


@pytest.fixture
def train(monkeypatch, tmp_path, capsys):
    """Run scripts/train.py in this process: train(config, "--dry-run") -> exit code and output.

    The loss curve stays empty: drawing it takes longer than the training does (test_stream.py draws one).
    """
    from ldm.cli import train
    from ldm.training.run_folder import MetricsLog

    monkeypatch.chdir(tmp_path)

    def run(config: dict | None, *args: str) -> tuple[int, str, str]:
        monkeypatch.setenv(FOLDER_VARIABLE, "")
        if config is not None:
            path = tmp_path / "tiny.yaml"
            path.write_text(yaml.safe_dump(config))
            args = ("--config", str(path), *args)
        try:
            code = train.main(None, list(args))
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    with pytest.MonkeyPatch.context() as kept:  # tests undo their own
        kept.setattr(MetricsLog, "draw", lambda self, path: path.touch())
        yield run


def state(folder) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


METHODS = {
    "autoencoder": {"disc_start": 1, "disc_channels": 8, "disc_num_layers": 1, "scale_images": 32},
    "diffusion": {"cache_latents": 32, "scale_by_std": True, "sample_count": 4, "sample_steps": 2},
    "clip": {"retrieval_count": 16},
}


@pytest.mark.few(1)
@pytest.mark.parametrize("method", METHODS)
def test_three_steps_leave_a_model_that_loads(train, config, tmp_path, method):
    mask = os.umask(0o022)
    code, out, err = train(config(method, METHODS[method], precision="bfloat16"), "--run", "run")
    os.umask(mask)
    assert (code, err) == (0, "")
    folder = tmp_path / "run"
    model = ldm.load_model(folder / "model.yaml", folder / "model.safetensors", device="cpu")
    assert not model.training
    with safe_open(folder / "model.safetensors", "pt") as file:
        about = file.metadata()
        kept = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kept == {torch.float16}
    assert {(folder / name).stat().st_mode & 0o777 for name in ("model.safetensors", "model.yaml")} == {0o644}
    assert about["steps"] == "3" and about["weights"] == ("ema" if method == "diffusion" else "raw")
    if method == "diffusion":
        assert model.scale_factor == float(about["scale_factor"]) != 1.0
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.csv", "loss.png", "checkpoints", "images"} <= names
    with Image.open(folder / "images" / "00000003.png") as grid:
        assert grid.width >= 64
    assert json.loads((folder / "versions.json").read_text())[0]["torch"] == torch.__version__
    assert len((folder / "metrics.csv").read_text().splitlines()) == 5  # heading, 3 steps, validation


def test_every_setting_is_printed_and_nothing_written(train, config, tmp_path):
    code, out, err = train(config("autoencoder"), "--print-config", "train.seed=7", "--run", "run")
    assert (code, err) == (0, "")
    printed = yaml.safe_load(out)
    assert printed["train"]["seed"] == 7 and printed["train"]["keep"] == 2
    assert printed["autoencoder"]["kl_weight"] == 1e-6
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()
    code, both, _ = train(config("autoencoder"), "--print-config", "--dry-run", "train.seed=7")
    assert code == 0 and both.startswith(out) and "\n# data: " in both


def test_dry_run_opens_the_data_and_estimates_the_costs(train, config, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("one", "two", "three"):
        Image.new("RGB", (20, 16)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "one.txt").write_text("a red disc")
    made = config("diffusion", {"ema_decay": 0.9}, max_steps=300)
    params = {"path": "images", "size": 16}
    made |= {"data": {"target": "ldm.data.images.CaptionedImages", "params": params}}
    code, out, err = train(made, "--dry-run")
    assert code == 0
    said = dict(line.split(": ", 1) for line in out.splitlines())
    assert said["data"] == "3 images, 1 of them with a caption"
    assert "'a red disc'" in said["captions"]
    assert said["diffusion"] == "0.2 M parameters in DiffusionWrapper"
    assert said["steps"] == "300, 400 times through the data; 4 images of 16 x 16 in each"
    assert "1 image of 16 x 16" in train(made, "--dry-run", "train.batch_size=1")[1]
    assert said["memory"].startswith("about 0.0") and "GiB are free" in said["memory"]
    assert "s a step on cpu" in said["time"] and "for 300 steps" in said["time"]
    code, out, err = train(made, "--dry-run", "data.params.path=elsewhere")
    assert code == 2 and len(err.splitlines()) == 1
    assert f"data: path elsewhere: there is no such folder in the working folder, {tmp_path}" in err
    code, out, err = train(config("autoencoder"), "--dry-run", "data.params.size=17")
    assert code == 2 and "17 x 17" in err and len(err.splitlines()) == 1


WITHOUT_LIGHTNING = """
import sys
from ldm.cli import train
code = train.main(None, sys.argv[1:])
heavy = [name for name in ("torch", "pytorch_lightning", "matplotlib") if name in sys.modules]
print(code, *heavy)
"""


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "args, left",
    [(["--dry-run"], "0 torch"), (["train.batch_size=0"], "2"), (["--max-time", "x"], "2"), (["a=1"], "2")],
)
def test_nothing_heavy_is_imported_before_it_is_needed(config, tmp_path, args, left):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config("autoencoder")))
    command = [sys.executable, "-c", WITHOUT_LIGHTNING, "--config", "tiny.yaml", *args]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == left, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["autoencoder", "diffusion"])
def test_the_estimates_are_those_of_a_real_step(config, monkeypatch, method):
    """Memory: the tensors alive in a step on the CPU. Operations: those that are carried out."""
    from torch.utils.flop_counter import FlopCounterMode
    from training_loop import Loop

    from ldm.backends.memory import Peak
    from ldm.config import instantiate
    from ldm.devices import on_meta
    from ldm.training.building import choose_trained
    from ldm.training.estimate import step_costs

    loop = Loop(config(method, {"text_dropout": 0.0} if method == "diffusion" else {}), monkeypatch)
    module = loop.module
    with on_meta():
        model = instantiate(loop.config["model"])
    if method == "diffusion":
        model.requires_grad_(False)
        choose_trained(model.model, "model.", [])
    batch = next(loop.batches)
    monkeypatch.setattr("ldm.training.estimate.TOKENS", 12)
    operations, alive = step_costs(model, module.options, batch["images"])
    with FlopCounterMode(display=False) as counted, Peak() as peak:
        module.backward_losses(batch)
    assert operations == pytest.approx(counted.get_total_flops(), rel=0.15)  # the text is not counted
    assert alive == pytest.approx(peak.peak, rel=0.4)
    if method == "diffusion":       # attention makes no matrix of all tokens, on the meta device neither
        large = [step_costs(model, module.options, torch.empty(1, 3, side, side))[1] for side in (128, 256)]
        assert large[1] < 4.5 * large[0]


@pytest.mark.parametrize(
    "change, said",
    [
        (["train.learning_rat=1"], "learning_rate"),
        (["train.batch_size=few"], "batch_size"),
        (["model.params.embed_dim=four"], "embed_dim"),
        (["--max-time", "soon"], "HH:MM:SS"),
        (["--resume", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line(train, config, tmp_path, change, said):
    code, out, err = train(config("autoencoder"), *change)
    assert code == 2 and said in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_is_resumed_from_any_folder(train, config, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 16), "red").save(tmp_path / "images" / "one.png")
    made = config("autoencoder", max_steps=1)
    made["data"] = {"target": "ldm.data.images.CaptionedImages", "params": {"path": "images", "size": 16}}
    code, out, err = train(made, "--run", "run")
    assert code == 0 and "train.max_steps is reached: 1 step in " in out, err
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["params"]["path"] == str(
        tmp_path / "images"
    )
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    changes = "train.max_steps=2", "autoencoder.ckpt=../run/model.safetensors"
    code, out, err = train(None, "--resume", "../run", *changes)
    assert code == 0 and "the model after 2 steps: ../run/model.safetensors" in out, err
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert written["autoencoder"]["ckpt"] == f"{tmp_path}/other/../run/model.safetensors"


def test_the_clock_ends_a_run_cleanly(train, config, tmp_path):
    code, out, err = train(
        config("autoencoder", max_steps=0, lr_schedule="cosine_by_time"), "--run", "run", "--max-time", "0.01"
    )
    assert (code, err) == (0, "")
    assert (tmp_path / "run" / "model.safetensors").exists()


def kill_self(number: int, at_step: int, monkeypatch) -> None:
    """Send this process a signal at the end of a step."""
    end = callbacks.Keeper.on_train_batch_end

    def then_kill(self, trainer, module, *args):
        if module.step == at_step:
            os.kill(os.getpid(), number)
        end(self, trainer, module, *args)

    monkeypatch.setattr(callbacks.Keeper, "on_train_batch_end", then_kill)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_a_signal_saves_and_says_how_to_go_on(train, config, tmp_path, monkeypatch, name):
    handlers = signal.getsignal(signal.SIGTERM)
    kill_self(getattr(signal, name), 2, monkeypatch)
    code, out, err = train(config("autoencoder"), "--run", "run")
    assert code == 75 and f"stopped by {name}" in err and "--resume" in err
    first = "Ctrl-C" if name == "SIGINT" else name
    assert err.startswith(f"{first}: finishing step 2, then saving the state; ")
    assert len(err.splitlines()) == 2
    assert state(tmp_path / "run")["step"] == 2
    assert signal.getsignal(signal.SIGTERM) == handlers
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = train(None, "--resume", "run")
    assert (code, err) == (0, "") and state(tmp_path / "run")["step"] == 3


@pytest.mark.few(1)
@pytest.mark.parametrize("where", ["evaluate", "export", "prepare"])
def test_a_signal_outside_of_the_steps(train, config, tmp_path, monkeypatch, where):
    """Validation is cut short and export ended at once; the state is there, and resuming exports it."""
    from ldm.training.autoencoder import AutoencoderTraining

    original = getattr(AutoencoderTraining, where)

    def killed(self, *args):
        os.kill(os.getpid(), signal.SIGHUP)
        return original(self, *args)

    monkeypatch.setattr(AutoencoderTraining, where, killed)
    code, out, err = train(config("autoencoder"), "--run", "run")
    assert code == 75 and "stopped by SIGHUP" in err and not (tmp_path / "run" / "model.safetensors").exists()
    assert bool(list((tmp_path / "run").glob("images/*"))) == (where == "export")
    if where == "prepare":
        assert err == "stopped by SIGHUP; run the command again\n"
        return
    assert ("SIGHUP: finishing the validation of step 3" in err) == (where == "evaluate")
    assert "--resume run" in err and state(tmp_path / "run")["step"] == 3
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert train(None, "--resume", "run")[0] == 0
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_second_ctrl_c_ends_at_once_with_the_last_saved_state(train, config, tmp_path, monkeypatch):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    backward = callbacks.TrainingModule.loss_backward

    def twice(self, loss):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        backward(self, loss)

    monkeypatch.setattr(callbacks.TrainingModule, "loss_backward", twice)
    code, out, err = train(config("autoencoder", save_every=1), "--run", "run")
    restored = signal.signal(signal.SIGINT, handler)
    assert code == 130 and "resume with --resume run" in err and err.endswith("interrupted\n")
    assert restored is signal.default_int_handler
    assert state(tmp_path / "run")["step"] == 2


def test_a_state_becomes_a_model_without_training(train, config, tmp_path):
    """The newest, or an earlier one; as training itself would export it, at the size of its images."""
    assert train(config("diffusion", {"sample_count": 0}, save_every=2), "--run", "run")[0] == 0
    trained = load_file(tmp_path / "run" / "model.safetensors")
    described = (tmp_path / "run" / "model.yaml").read_text()
    for name in ("model.safetensors", "model.yaml"):
        (tmp_path / "run" / name).unlink()
    code, out, err = train(None, "--resume", "run", "--export")
    assert (code, err) == (0, "") and "the model after 3 steps: run/model.safetensors" in out
    assert (tmp_path / "run" / "model.yaml").read_text() == described
    again = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in trained.items())
    earlier = "run/checkpoints/step-00000002.ckpt"
    code, out, err = train(None, "--resume", earlier, "--export", "data.params.size=32")
    assert code == 0 and "after 2 steps" in out
    assert not all(
        torch.equal(value, trained[name])
        for name, value in load_file(tmp_path / "run" / "model.safetensors").items()
    )
    model = ldm.load_model(tmp_path / "run" / "model.yaml", tmp_path / "run" / "model.safetensors")
    assert model.native_size == 32, "where the data have another size than the configuration's"


@pytest.mark.parametrize("args", [["--export"], ["--export", "--resume", "auto"]])
def test_export_needs_a_run(train, config, args):
    code, out, err = train(config("autoencoder"), *args)
    assert code == 2 and "--resume" in err and len(err.splitlines()) == 1


def test_nan_stops_the_run_and_keeps_the_last_good_state(train, config, tmp_path, monkeypatch):
    from demo.discs import Discs

    batch = Discs.batch

    def poisoned(self, generator, batch_size):
        images, captions = batch(self, generator, batch_size)
        poisoned.calls += 1
        return (images * float("nan") if poisoned.calls == 8 else images), captions

    poisoned.calls = 0
    monkeypatch.setattr(Discs, "batch", poisoned)
    code, out, err = train(config("autoencoder", max_steps=20), "--run", "run")
    assert code == 2 and "not finite" in err and len(err.splitlines()) == 1
    saved = state(tmp_path / "run")
    assert 0 < saved["step"] < 8 and callbacks.finite(saved)


def test_a_detached_parameter_is_named(train, config, monkeypatch):
    from ldm.models.autoencoder import AutoencoderKL

    decode = AutoencoderKL.decode
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z: decode(self, z.detach()))
    code, out, err = train(config("autoencoder", {"kl_weight": 0.0}, max_steps=20))
    assert code == 2 and "encoder.conv_in.weight" in err and "no gradient" in err


RUNS = {
    "autoencoder": ({"disc_start": 4, "disc_channels": 8, "disc_num_layers": 1, "ema_decay": 0.9}, {}),
    "diffusion": ({"cache_latents": 32, "scale_by_std": True, "sample_count": 0}, {"precision": "bfloat16"}),
    "clip": ({}, {"accumulate": 2, "batch_size": 3}),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("method", RUNS)
def test_resume_equals_uninterrupted(train, config, tmp_path, monkeypatch, leaves, method):
    options, settings = RUNS[method]
    made = config(
        method, options, max_steps=20, save_every=10, lr_schedule="cosine", warmup_steps=5, **settings
    )
    assert train(made, "--run", "straight")[0] == 0
    kill_self(signal.SIGTERM, 10, monkeypatch)
    assert train(made, "--run", "broken")[0] == 75
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(99)  # what the process did before must not matter
    assert train(None, "--resume", "broken")[0] == 0
    assert_equal_runs(tmp_path, leaves)


def assert_equal_runs(tmp_path, leaves) -> None:
    straight, broken = (leaves(state(tmp_path / name)) for name in ("straight", "broken"))
    assert straight.keys() == broken.keys()
    assert straight["/step"] == 20
    for name, value in straight.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, broken[name]), name
        elif name != "/elapsed":
            assert value == broken[name], name
    first, second = (
        (tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("straight", "broken")
    )
    assert len(first) == len(second)


KILLED = """
import os, sys
sys.path.insert(0, {repository!r})
from ldm.training import callbacks
end = callbacks.Keeper.on_train_batch_end
def then_die(self, trainer, module, *args):
    end(self, trainer, module, *args)
    if module.step == 13:
        os.kill(os.getpid(), 9)
callbacks.Keeper.on_train_batch_end = then_die
sys.argv = ["train.py", *{args!r}]
import runpy
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_but_the_steps_since_the_checkpoint(train, config, tmp_path, leaves):
    """20 steps = 13 + kill -9 + 10 from the checkpoint at 10, in processes of their own."""
    made = config("autoencoder", {"ema_decay": 0.9}, max_steps=20, save_every=10, num_threads=1)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(made))
    script = str(REPOSITORY / "scripts" / "train.py")
    code = KILLED.format(
        repository=str(REPOSITORY), script=script, args=["--config", str(path), "--run", "broken", "--quiet"]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert state(tmp_path / "broken")["step"] == 10
    done = subprocess.run(
        [sys.executable, script, "--resume", "broken", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    threads = torch.get_num_threads()
    assert train(made, "--run", "straight")[0] == 0
    torch.set_num_threads(threads)
    assert_equal_runs(tmp_path, leaves)


TWO_PROCESSES = """
import sys
sys.path.insert(0, {repository!r})
import torch
from ldm.training import callbacks
end = callbacks.Keeper.on_train_end
def then_compare(self, trainer, module):
    here = torch.cat([p.detach().flatten() for p in module.parameters()])
    everywhere = module.all_gather(here)
    assert len(everywhere) == 2 and torch.equal(everywhere[0], everywhere[1]), "the ranks' weights differ"
    end(self, trainer, module)
callbacks.Keeper.on_train_end = then_compare
from ldm.cli import train
sys.exit(train.main(None))      # not runpy: the second process must run this file too
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", RUNS)
def test_two_processes_keep_equal_weights(config, tmp_path, method):
    options, settings = RUNS[method]
    made = config(method, options, max_steps=8, devices=2, **settings)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(made))
    driver = tmp_path / "two.py"
    driver.write_text(TWO_PROCESSES.format(repository=str(REPOSITORY)))
    command = [sys.executable, str(driver), "--config", "tiny.yaml", "--run", "run"]
    environment = {k: v for k, v in os.environ.items() if k != FOLDER_VARIABLE} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == done.stdout.count("the model after 8 steps") == 1
    assert state(tmp_path / "run")["step"] == 8


def test_a_dry_run_looks_for_the_weights(tmp_path, capsys):
    command = ["--config", str(REPOSITORY / "configs/training/text_to_image.yaml"), "--dry-run"]
    command += [f"data.params.path={tmp_path}", f"val_data.params.path={tmp_path}"]
    Image.new("RGB", (768, 768)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a square")
    assert train_main(None, [*command, f"diffusion.ckpt={tmp_path / 'none.safetensors'}"]) == 2
    assert "none.safetensors: there is no such file or folder" in capsys.readouterr().err


def test_a_run_is_resumed_whose_data_had_a_hint(train, config, tmp_path):
    """An older version wrote `hint` into config.yaml for the extra input of the data."""
    made = config("diffusion")
    made["data"]["params"]["hint"] = "depth"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(made))
    code, out, err = train(None, "--resume", "run", "--print-config")
    assert (code, err) == (0, "") and "extra_input: depth" in out and "hint" not in out
