"""The settings of a training run: what `train:` and the method's own section of a YAML file may say.

    model:       {target, params}    the network, exactly as an inference YAML describes it
    data:        {target, params}    where images and captions come from
    val_data:    {target, params}    optional: held-out images for the figures in the log
    train:       TrainOptions        common to every method
    autoencoder: | diffusion: | clip:    exactly one of them; it chooses the method

No torch here, so that `--help` and `--dry-run` stay quick. Times are given in seconds or as HH:MM:SS.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ldm.errors import ConfigError, nearest

Options = TypeVar("Options")


@dataclass
class TrainOptions:
    """Settings that every method shares."""

    seed: int = 0                       # every random draw is a function of (seed, step, rank)
    batch_size: int = 16                # images a device and micro-batch
    accumulate: int = 1                 # micro-batches an optimizer step
    max_steps: int = 0                  # optimizer steps in all, over resumes; 0: no limit
    max_time: str = ""                  # training time in all, over resumes; empty: no limit
    learning_rate: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.01
    grad_clip: float = 1.0              # largest norm of the gradient; 0: unlimited
    lr_schedule: str = "constant"       # constant | cosine (over steps) | cosine_by_time (over the limit)
    lr_final: float = 0.01              # where the cosine ends, as a fraction of learning_rate
    warmup_steps: int = 0               # linear from 0
    precision: str = "float32"          # of the forward pass: float32 | bfloat16; weights stay float32
    accelerator: str = "auto"           # auto | cpu | gpu | mps
    devices: int = 1                    # more than one: DistributedDataParallel
    channels_last: bool = True          # memory layout of images and convolutions
    compile: bool = False               # torch.compile the trained networks; on CPU it needs a C++ compiler
    num_threads: int = 0                # of torch on CPU; 0: as the environment says
    prefetch: int = 0                   # batches prepared ahead by a thread
    log_every: int = 10                 # steps between lines of metrics.csv
    sample_every: int = 500             # steps between samples and validation figures; 0: at the end
    save_every: int = 200               # steps between checkpoints
    keep: int = 2                       # checkpoints kept
    self_check_steps: int = 5           # steps within which a gradient must reach every tensor; 0: no check
    self_check_allow: dict[str, str] = field(default_factory=dict)    # part of a name -> why it may rest
    export_dtype: str = "float16"       # of model.safetensors: float16 | float32


@dataclass
class AutoencoderOptions:
    """L1 + image gradient + perceptual + KL + patch discriminator."""

    pixel_weight: float = 1.0
    gradient_weight: float = 0.0        # of L1 between neighbours' differences: keeps edges with few steps
    perceptual_weight: float = 0.0      # distance in VGG16 features, where the packages for it are installed
    perceptual_crop: int = 0            # side of the random crop it looks at; 0: the whole image
    perceptual_every: int = 1           # only every so many steps
    kl_weight: float = 1e-6
    learn_logvar: bool = False          # rec/exp(logvar) + logvar
    logvar_init: float = 0.0
    disc_start: int = -1                # step at which the discriminator joins; -1: never
    disc_weight: float = 0.5
    disc_factor: float = 1.0
    disc_loss: str = "hinge"            # hinge | vanilla
    disc_channels: int = 64
    disc_num_layers: int = 3
    ema_decay: float = 0.0              # 0: no averaging
    ckpt: str = ""                      # weights to start from
    scale_images: int = 256             # images from which the latents' scale factor is measured at the end


@dataclass
class DiffusionOptions:
    """Noise or velocity regression on latents."""

    first_stage_ckpt: str = ""          # weights of the frozen autoencoder
    cond_stage_ckpt: str = ""           # weights of the frozen text encoder
    ckpt: str = ""                      # a complete checkpoint to start from, instead of the two
    embedder_ckpt: str = ""             # weights of the frozen image encoder that unCLIP is conditioned on
    grow_inputs: list[str] = field(default_factory=list)      # tensors of ckpt that get zeros for new inputs
    new_tensors: dict[str, str] = field(default_factory=dict)  # pattern of a name ckpt lacks -> zero | drawn
    only: list[str] = field(default_factory=list)   # patterns of what is trained; empty: the whole UNet
    ema_decay: float = 0.9999           # 0: no averaging
    loss_type: str = "l2"               # l2 | l1
    min_snr_gamma: float = 0.0          # 0: off; 5 in the paper
    offset_noise: float = 0.0           # standard deviation of a constant added to each channel's noise
    text_dropout: float = 0.1           # captions replaced by the empty one, for classifier-free guidance
    embedding_dropout: float = 0.25     # unCLIP: image embeddings, with their level, replaced by zeros
    gradient_checkpointing: bool = False
    cache_latents: int = 0              # images encoded once before training; 0: encode every batch
    cache_text_mb: int = 2048           # memory for encoded captions; 0: encode every batch
    scale_by_std: bool = False          # set scale_factor to 1 / std of the latents before the first step
    sample_prompts: list[str] = field(default_factory=list)   # empty: captions of the data
    sample_count: int = 16
    sample_steps: int = 25
    sample_scale: float = 4.0


@dataclass
class ClipOptions:
    """Contrastive text-image training of a small open_clip CLIP; its text tower is the conditioner."""

    ckpt: str = ""                      # clip.safetensors of an earlier run to start from
    retrieval_count: int = 256          # held-out pairs among which retrieval is measured


# Section -> its options, and the class that trains.
METHODS = {
    "autoencoder": (AutoencoderOptions, "ldm.training.autoencoder.AutoencoderTraining"),
    "diffusion": (DiffusionOptions, "ldm.training.diffusion.DiffusionTraining"),
    "clip": (ClipOptions, "demo.clip_training.ClipTraining"),
}
SECTION_CLASSES = {"train": TrainOptions, **{name: options for name, (options, _) in METHODS.items()}}
SECTIONS = ("model", "data", "val_data", "train", *METHODS)
CHOICES = {
    "lr_schedule": ("constant", "cosine", "cosine_by_time"),
    "precision": ("float32", "bfloat16"),
    "export_dtype": ("float16", "float32"),
    "disc_loss": ("hinge", "vanilla"),
    "loss_type": ("l2", "l1"),
    "accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
}


def parse_duration(text: str | int | float) -> float:
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
    if seconds < 0 or len(parts) > 3:
        raise ConfigError(f"time {text!r}: expected seconds or HH:MM:SS")
    return seconds


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


def read_options(cls: type[Options], section: dict[str, Any] | None, where: str) -> Options:
    """Build the dataclass `cls` from a YAML section, with the types and choices checked.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a wrong type or a value outside the choices.
    """
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    values = {}
    for key, value in (section or {}).items():
        if key not in fields:
            raise ConfigError(f"{where}.{key}: unknown{nearest(key, fields)}")
        values[key] = checked(value, fields[key].type, f"{where}.{key}")
        if key in CHOICES and value not in CHOICES[key]:
            raise ConfigError(f"{where}.{key}: got {value!r}, expected one of {', '.join(CHOICES[key])}")
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
            return [float(entry) for entry in value]
        if kind == list[str] and isinstance(value, list):
            return [str(entry) for entry in value]
        if kind == dict[str, str] and isinstance(value, dict):
            return {str(key): str(entry) for key, entry in value.items()}
    except (TypeError, ValueError):
        pass
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise ConfigError(f"{where}: got {value!r}, expected {name}")
