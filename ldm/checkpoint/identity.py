"""What a set of weights is: the record that `identify` returns, and the words for it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ldm.wording import script

TASKS = {
    "txt2img": "text-to-image",
    "inpaint": "inpainting",
    "depth": "depth-to-image",
    "upscale": "x4 upscaling",
    "instruct": "image editing",
    "unclip-h": "image variations (unCLIP-H)",
    "unclip-l": "image variations (unCLIP-L)",
    "controlnet": "text-to-image under a ControlNet",
    "unconditional": "unconditional image generation",
}
KINDS = {
    "model": "a model",
    "unet": "a UNet alone",
    "vae": "a VAE alone",
    "text_encoder": "a text encoder alone",
    "image_encoder": "an image encoder alone",
    "depth_estimator": "a depth estimator alone",
    "controlnet": "a ControlNet",
    "lora": "a LoRA",
    "lycoris": "a LyCORIS",
    "textual_inversion": "a textual-inversion embedding",
    "hypernetwork": "a hypernetwork",
    "t2i_adapter": "a T2I adapter",
    "training": "the state of a training run",
    "optimizer": "the state of an optimizer",
    "foreign": "a foreign model",
    "unknown": "weights of no known kind",
}
ADD_ONS = ("lora", "lycoris", "textual_inversion", "hypernetwork", "t2i_adapter")


@dataclass(frozen=True)
class Identity:
    """What a file or folder holds, as far as its names, shapes and labels tell."""

    kind: str                               # a key of KINDS
    family: str | None = None               # "1.x", "2.x", or another model's name: "SDXL"
    task: str | None = None                 # a key of TASKS
    prediction: str | None = None           # "eps" or "v"
    prediction_source: str | None = None    # "metadata", "scheduler_config", "family" or "probe"
    weights: str | None = None              # "raw", "ema" or "raw+ema"
    layout: str | None = None               # how the tensors are named
    variant: str | None = None              # which kind of LoRA, ControlNet file, ...
    in_channels: int | None = None
    context_width: int | None = None
    rank: str | None = None                 # of a LoRA: "16", or "4 to 64"
    vectors: int | None = None              # of a textual inversion
    parameters: dict[str, int] = field(default_factory=dict)    # part -> count
    dtypes: dict[str, int] = field(default_factory=dict)        # dtype -> bytes
    config: str | None = None               # the reference YAML that describes it
    lacks: list[str] = field(default_factory=list)              # parts of a model that are not there
    notes: list[str] = field(default_factory=list)
    path: str | None = None
    container: str | None = None
    bytes: int | None = None                # of all its files
    sha256: str | None = None

    @property
    def is_model(self) -> bool:
        """Tell whether images can be made with it, if what it lacks is taken from elsewhere."""
        return self.kind in ("model", "unet") or (self.kind == "controlnet" and self.variant == "whole")

    @property
    def training_size(self) -> int | None:
        """Return the side in pixels that the reference model of this kind was trained at."""
        if not self.is_model or self.family not in ("1.x", "2.x"):
            return None
        is_768 = self.family == "2.x" and (
            self.task in ("unclip-h", "unclip-l") or (self.task == "txt2img" and self.prediction == "v")
        )
        return 768 if is_768 else 512

    def record(self) -> dict[str, Any]:
        """Return everything as plain data; the keys are stable."""
        return asdict(self) | {"training_size": self.training_size, "is": self.sentence()}

    def sentence(self) -> str:
        """Return a few words with an article: "an SD 2.x model for inpainting (9 input channels)"."""
        if self.kind == "foreign":
            return f"{_article(self.family)} {self.family}"
        if self.kind == "controlnet":
            whole = {"whole": " with its model", "difference": " as a difference"}.get(self.variant, " alone")
            return f"a ControlNet for {self._for()}{whole}"
        if self.kind in ADD_ONS:
            purpose = f" for {self._for()}" if self.family else ""
            return f"{KINDS[self.kind]}{purpose}, no model"
        if self.kind in ("model", "unet"):
            return self._model()
        known = f" of SD {self.family}" if self.family else ""
        return KINDS[self.kind] + known

    def _for(self) -> str:
        if self.family is None:
            width = self.context_width
            return f"a model of context width {width}" if width else "an unknown model"
        return f"SD {self.family}" if self.family in ("1.x", "2.x") else self.family

    def _model(self) -> str:
        if self.family:
            what = f"an SD {self.family} model"
        elif self.context_width:
            what = f"a model of context width {self.context_width}"
        else:
            what = "a model"
        task = TASKS.get(self.task, "an unknown task")
        channels = f" ({self.in_channels} input channels)" if self.in_channels else ""
        lacking = f" without {' and '.join(self.lacks)}" if self.lacks else ""
        only = ", the EMA weights alone" if self.weights == "ema" else ""
        return f"{what} for {task}{channels}{lacking}{only}"


def _article(name: str | None) -> str:
    return "an" if (name or "").startswith(("A", "E", "I", "O", "SD", "SV", "L")) else "a"


def model_of_run(path: Path) -> str | None:
    """Say where the model of a training run is, or how to make it; None if the path has to do with no run.

    Args:
        path: a state, the folder of the states, or that of the run.
    """
    near = [x for start in (path, path.absolute()) for x in (start, start.parent, start.parent.parent)]
    run = next((x for x in near if (x / "config.yaml").is_file() and (x / "checkpoints").is_dir()), None)
    if run is None:
        return None
    earlier = path.suffix == ".ckpt" and path.name != "last.ckpt"
    if not earlier and (run / "model.safetensors").is_file():
        return f"the model of this run is {run / 'model.safetensors'}"
    return f"{script('train')} --resume {path if earlier else run} --export makes a model of it"


def how_to_export(path: Path) -> str:
    """Say how a model is made of the state of a training run in a file."""
    return model_of_run(path) or (
        f"to make a model of it, put it back into the folder checkpoints of its run, and call "
        f"{script('train')} with --resume and this file, and --export"
    )
