"""The settings of a training run: what `train:` and the method's own section of a YAML file may say.

    model:       {target, params}    the network, exactly as an inference YAML describes it
    data:        {target, params}    where images and captions come from
    val_data:    {target, params}    optional: held-out images for the figures in the log
    train:       TrainOptions        common to every method
    autoencoder: | diffusion: | control: | clip:    exactly one of them; it chooses the method

No torch here, so that `--help` and `--dry-run` stay quick. Times are given in seconds or as HH:MM:SS.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ldm.errors import ConfigError, nearest

Options = TypeVar("Options")


def setting(default: Any, *, low: float | None = None, above: float | None = None, high: float | None = None,
            below: float | None = None, one_of: tuple[str, ...] = ()) -> Any:  # fmt: skip
    """Return a field with the values that it may have: at least `low`, more than `above`, and so on."""
    about = {"low": low, "above": above, "high": high, "below": below, "one_of": one_of}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    return field(default=default, metadata=about)


@dataclass
class TrainOptions:
    """Settings that every method shares."""

    seed: int = setting(0, low=0, high=2**63 - 1)   # every random draw is a function of (seed, step, rank)
    batch_size: int = setting(16, low=1)    # images a device and micro-batch
    accumulate: int = setting(1, low=1)     # micro-batches an optimizer step
    max_steps: int = setting(0, low=0)      # optimizer steps in all, over resumes; 0: no limit
    max_time: str = ""                  # time in all, over resumes, with saving and export; empty: no limit
    learning_rate: float = setting(1e-4, above=0, high=10)
    betas: list[float] = setting([0.9, 0.999], low=0, below=1)   # of AdamW; two
    weight_decay: float = setting(0.01, low=0)
    grad_clip: float = setting(1.0, low=0)  # largest norm of the gradient; 0: unlimited
    # constant | cosine (over steps) | cosine_by_time (over the limit)
    lr_schedule: str = setting("constant", one_of=("constant", "cosine", "cosine_by_time"))
    lr_final: float = setting(0.01, low=0, high=1)  # where the cosine ends, as a fraction of learning_rate
    warmup_steps: int = setting(0, low=0)   # linear from 0
    # of the forward pass; weights stay float32
    precision: str = setting("float32", one_of=("float32", "bfloat16"))
    accelerator: str = setting("auto", one_of=("auto", "cpu", "gpu", "cuda", "mps"))
    devices: int = setting(1, low=1)    # more than one: DistributedDataParallel
    channels_last: bool = True          # memory layout of images and convolutions
    compile: bool = False               # torch.compile the trained networks; on CPU it needs a C++ compiler
    num_threads: int = setting(0, low=0, high=4096)     # of torch on CPU; 0: as the environment says
    prefetch: int = setting(0, low=0, high=1000)        # batches prepared ahead by a thread
    log_every: int = setting(10, low=1)     # steps between lines of metrics.csv
    sample_every: int = setting(500, low=0)     # steps between samples and validation; 0: at the end
    save_every: int = setting(200, low=1)   # steps between checkpoints
    keep: int = setting(2, low=1)       # checkpoints kept
    # steps within which a gradient must reach every tensor; 0: no check
    self_check_steps: int = setting(5, low=0)
    self_check_allow: dict[str, str] = setting({})  # part of a name -> why it may rest
    export_dtype: str = setting("float16", one_of=("float16", "float32"))   # of model.safetensors

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise ConfigError(f"train.betas: got {self.betas}, expected two numbers")
        parse_duration(self.max_time, "train.max_time")
        if self.lr_schedule == "cosine" and not self.max_steps:
            raise ConfigError(
                "train.lr_schedule=cosine needs train.max_steps; cosine_by_time needs a time limit"
            )


@dataclass
class AutoencoderOptions:
    """L1 + image gradient + perceptual + KL + patch discriminator."""

    pixel_weight: float = setting(1.0, low=0)
    gradient_weight: float = setting(0.0, low=0)    # of L1 between neighbours' differences: keeps edges
    perceptual_weight: float = setting(0.0, low=0)  # distance in VGG16 features, where its packages are
    perceptual_crop: int = setting(0, low=0)    # side of the random crop it looks at; 0: the whole image
    perceptual_every: int = setting(1, low=1)   # only every so many steps
    kl_weight: float = setting(1e-6, low=0)
    learn_logvar: bool = False          # rec/exp(logvar) + logvar
    logvar_init: float = setting(0.0, low=-50, high=50)
    disc_start: int = setting(-1, low=-1)   # step at which the discriminator joins; -1: never
    disc_weight: float = setting(0.5, low=0)
    disc_factor: float = setting(1.0, low=0)
    disc_loss: str = setting("hinge", one_of=("hinge", "vanilla"))
    disc_channels: int = setting(64, low=1)
    disc_num_layers: int = setting(3, low=1, high=10)
    ema_decay: float = setting(0.0, low=0, high=1)  # 0: no averaging
    ckpt: str = ""                      # weights to start from
    scale_images: int = setting(256, low=1)     # images that the latents' scale factor is measured from


@dataclass
class DiffusionOptions:
    """Noise or velocity regression on latents."""

    first_stage_ckpt: str = ""          # weights of the frozen autoencoder
    cond_stage_ckpt: str = ""           # weights of the frozen text encoder
    ckpt: str = ""                      # a complete checkpoint to start from, instead of the two
    embedder_ckpt: str = ""             # weights of the frozen image encoder that unCLIP is conditioned on
    grow_inputs: list[str] = setting([])        # tensors of ckpt that get zeros for new inputs
    new_tensors: dict[str, str] = setting({})   # pattern of a name ckpt lacks -> zero | drawn
    only: list[str] = setting([])       # patterns of what is trained; empty: the whole UNet
    ema_decay: float = setting(0.9999, low=0, high=1)   # 0: no averaging
    loss_type: str = setting("l2", one_of=("l2", "l1"))
    min_snr_gamma: float = setting(0.0, low=0)  # 0: off; 5 in the paper
    offset_noise: float = setting(0.0, low=0)   # deviation of a constant added to each channel of the noise
    # captions replaced by the empty one, for classifier-free guidance
    text_dropout: float = setting(0.1, low=0, high=1)
    # unCLIP: image embeddings, with their level, replaced by zeros
    embedding_dropout: float = setting(0.25, low=0, high=1)
    gradient_checkpointing: bool = False
    cache_latents: int = setting(0, low=0)  # images encoded once before training; 0: encode every batch
    cache_text_mb: int = setting(2048, low=0)   # memory for encoded captions; 0: encode every batch
    scale_by_std: bool = False          # set scale_factor to 1 / std of the latents before the first step
    sample_prompts: list[str] = setting([])     # empty: captions of the data
    sample_count: int = setting(16, low=0)
    sample_steps: int = setting(25, low=1)
    sample_scale: float = setting(4.0, low=0)


@dataclass
class ControlOptions(DiffusionOptions):
    """A ControlNet of the model; `ckpt` is the complete model that it steers."""

    control_ckpt: str = ""              # a ControlNet to start from; empty: a copy of the UNet's encoder
    annotator: str = ""                 # makes hints of the images: canny, or canny,low=50,high=150
    annotator_weights: str = ""         # of an annotator with a network
    sd_locked: bool = True              # False: the UNet's decoder (output_blocks, out) is trained, too
    # alone; as a difference from the model, without what is not trained; or with the model
    save: str = setting("control", one_of=("control", "difference", "full"))
    ema_decay: float = setting(0.0, low=0, high=1)
    text_dropout: float = setting(0.5, low=0, high=1)
    sample_count: int = setting(4, low=0)


@dataclass
class ClipOptions:
    """Contrastive text-image training of a small open_clip CLIP; its text tower is the conditioner."""

    ckpt: str = ""                      # clip.safetensors of an earlier run to start from
    retrieval_count: int = setting(256, low=1)  # held-out pairs among which retrieval is measured


# Section -> its options, and the class that trains.
METHODS = {
    "autoencoder": (AutoencoderOptions, "ldm.training.autoencoder.AutoencoderTraining"),
    "diffusion": (DiffusionOptions, "ldm.training.diffusion.DiffusionTraining"),
    "control": (ControlOptions, "ldm.training.control.ControlTraining"),
    "clip": (ClipOptions, "demo.clip_training.ClipTraining"),
}
SECTION_CLASSES = {"train": TrainOptions, **{name: options for name, (options, _) in METHODS.items()}}
SECTIONS = ("model", "data", "val_data", "train", *METHODS)


def parse_duration(text: str | int | float, where: str = "time") -> float:
    """Return seconds of "90", "01:30" (minutes) or "01:30:00"; an empty text is 0.

    Raises:
        ConfigError: anything else.
    """
    parts = str(text).strip().split(":")
    if parts == [""]:
        return 0.0
    try:
        seconds = 0.0
        for part in parts:
            seconds = seconds * 60 + float(part)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf") or "-" in str(text) or len(parts) > 3:
        raise ConfigError(f"{where} {text!r}: expected seconds or HH:MM:SS")
    return seconds


def with_todays_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of an older run; the data sets' `extra_input` used to be `hint`."""
    for section in ("data", "val_data"):
        params = (config.get(section) or {}).get("params") or {}
        if "hint" in params:
            params["extra_input"] = params.pop("hint")
    return config


def method_of(config: dict[str, Any]) -> str:
    """Return the name of the one method section in the configuration."""
    unknown = [key for key in config if key not in SECTIONS]
    if unknown:
        known = ", ".join(SECTIONS)
        hint = nearest(unknown[0], SECTIONS)
        raise ConfigError(f"{unknown[0]}: not a section of a training config (known: {known}){hint}")
    present = [name for name in METHODS if name in config]
    if len(present) != 1:
        known = ", ".join(METHODS)
        raise ConfigError(f"got the sections {present or 'none'}; expected exactly one of {known}")
    return present[0]


def read_sections(config: dict[str, Any]) -> tuple[str, TrainOptions, Any]:
    """Return the method's name, the `train` section and the method's own, with types and ranges checked."""
    method = method_of(config)
    train = read_options(TrainOptions, config.get("train"), "train")
    return method, train, read_options(METHODS[method][0], config.get(method), method)


def resolve_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with every default filled in.

    Raises:
        ConfigError: a section or key that does not exist, a wrong type, or a value out of its range.
    """
    method, train, options = read_sections(config)
    for section in ("model", "data", "val_data"):
        node = config.get(section)
        if (section != "val_data" or node) and not (isinstance(node, dict) and "target" in node):
            raise ConfigError(f"{section}: got {node!r}, expected target and params")
    resolved = {"model": config["model"], "data": config["data"]}
    if config.get("val_data"):
        resolved["val_data"] = config["val_data"]
    return resolved | {"train": dataclasses.asdict(train), method: dataclasses.asdict(options)}


def read_options(cls: type[Options], section: Any, where: str) -> Options:
    """Build the dataclass `cls` from a YAML section, with types and ranges checked.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a wrong type, a value out of its range.
    """
    if not isinstance(section, (dict, type(None))):
        raise ConfigError(f"{where}: got {section!r}, expected a mapping")
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    values = {}
    for key, value in (section or {}).items():
        if key not in fields:
            raise ConfigError(f"{where}.{key}: unknown{nearest(key, fields)}")
        values[key] = checked(value, fields[key].type, f"{where}.{key}")
        check_range(values[key], fields[key].metadata, f"{where}.{key}")
    return cls(**values)


def checked(value: Any, kind: Any, where: str) -> Any:
    """Return `value` as the field's type; "1e-4" is accepted for a float because YAML reads it as text."""
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and not isinstance(value, bool) and float(value) == int(value):
            return int(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if kind == list[float] and isinstance(value, list):
            return [checked(entry, float, where) for entry in value]
        if kind == list[str] and isinstance(value, list):
            return [checked(entry, str, where) for entry in value]
        if kind == dict[str, str] and isinstance(value, dict):
            return {str(key): checked(entry, str, where) for key, entry in value.items()}
    except (TypeError, ValueError, OverflowError):
        pass
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise ConfigError(f"{where}: got {value!r}, expected {name}")


def check_range(value: Any, about: Mapping[str, Any], where: str) -> None:
    """Raise a ConfigError for a number, or one of a list, out of the field's range, or a word it lacks."""
    if about.get("one_of") and value not in about["one_of"]:
        hint = nearest(value, about["one_of"])
        raise ConfigError(f"{where}: got {value!r}, expected one of {', '.join(about['one_of'])}{hint}")
    low, above, high, below = (about.get(name) for name in ("low", "above", "high", "below"))
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        finite = isinstance(number, int) or math.isfinite(number)
        fits = finite and (low is None or number >= low) and (above is None or number > above)
        fits = fits and (high is None or number <= high) and (below is None or number < below)
        if not fits:
            bounds = [f"at least {low}"] * (low is not None) + [f"more than {above}"] * (above is not None)
            bounds += [f"at most {high}"] * (high is not None) + [f"less than {below}"] * (below is not None)
            raise ConfigError(f"{where}: got {value!r}, expected {' and '.join(bounds) or 'a finite number'}")
