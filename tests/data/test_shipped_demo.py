"""The demo models that ship: each loads by itself, says what it is, and is on the card."""

from pathlib import Path

import pytest
import torch

from ldm.checkpoint import identify
from ldm.config import find_config, instantiate, load_config
from ldm.devices import on_meta
from ldm.jobs.choosing import choose_config
from ldm.jobs.controls import control_files
from ldm.loading import load_model
from ldm.loading.controls import check_control
from ldm.requests import NAMES, Controlnet, Request, find

DEMO = Path(__file__).parents[2] / "configs/demo"
TASKS = {
    "emoji": ("txt2img", "LatentDiffusion"),
    "emoji_inpaint": ("inpaint", "LatentInpaintDiffusion"),
    "emoji_depth": ("depth", "LatentDepth2ImageDiffusion"),
    "emoji_upscale": ("upscale", "LatentUpscaleDiffusion"),
    "emoji_unclip": ("unclip-h", "ImageEmbeddingConditionedLatentDiffusion"),
}
CONTROLS = ("canny", "scribble")
ROOM = 60e6  # bytes, of all that is beside the base model


def request_for(name: str, **options: object) -> Request:
    """Return a request of the task whose scripts use a model by default."""
    return next(cls for cls in map(find, NAMES) if cls.DEMO == name)(**options)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", TASKS)
def test_a_shipped_model_loads_and_says_what_it_is(name):
    task, kind = TASKS[name]
    weights, config = DEMO / f"{name}.safetensors", DEMO / f"{name}.yaml"
    about = identify(weights)
    assert (about.task, about.prediction, about.prediction_source) == (task, "v", "metadata")
    assert not about.lacks and about.kind == "model"
    model = load_model(config, weights, "cpu", "float32")
    assert type(model).__name__ == kind and model.parameterization == "v"
    assert len(model.get_learned_conditioning(["3d emoji of a cat"])) == 1
    assert all(torch.isfinite(x).all() for x in model.parameters())
    assert choose_config(request_for(name, config=str(config)), weights).config == config


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_shipped_controlnet_is_small_fits_the_demo_model_and_is_found_by_its_kind(kind):
    file = DEMO / f"emoji_control_{kind}.safetensors"
    about = identify(file)
    assert (about.kind, about.variant) == ("controlnet", "difference") and file.stat().st_size < 12e6
    with on_meta():
        model = instantiate(load_config(DEMO / "emoji.yaml").model)
    check_control(file, model)
    ((found,),) = control_files(Controlnet(controls=f"{kind}:photo.png"))
    assert found.samefile(file)


@pytest.mark.parametrize("name", TASKS)
def test_a_shipped_model_needs_no_config_because_its_own_is_next_to_it(name):
    choice = choose_config(request_for(name), DEMO / f"{name}.safetensors")
    assert choice.config == DEMO / f"{name}.yaml"


def test_the_tasks_fit_the_room():
    files = [DEMO / f"{name}.safetensors" for name in TASKS if name != "emoji"]
    assert 10e6 < sum(file.stat().st_size for file in files) < ROOM


def test_every_shipped_file_is_on_the_card_and_every_configuration_opens_with_its_command():
    card = (DEMO / "MODEL_CARD.md").read_text(encoding="utf-8")
    for file in DEMO.iterdir():
        name = file.stem if file.suffix in (".safetensors", ".yaml") else file.name
        assert f"`{name}" in card or name == "MODEL_CARD.md", file.name
    for name in TASKS:
        first = (DEMO / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
        script = first.removeprefix("# python ").split()[0]
        assert script.startswith("scripts/") and find_config(DEMO / f"{name}.yaml")
        assert load_config(DEMO / f"{name}.yaml").model.target.startswith("ldm.models.")
