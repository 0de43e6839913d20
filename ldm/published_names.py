"""The reference's dotted names, and where each lives today.

Users own YAML files, notebooks and wrappers that say `ldm.models.diffusion.ddpm.LatentDiffusion`. One
table serves both ways in: `ldm.config` looks `target:` up in it, and `install_import_finder` makes the old
modules importable. An old module is an empty shell that fetches an attribute when it is asked for, so
there is one tree of code and importing this module loads no torch.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# Old module -> module of today -> the names that moved there.
_MOVED = {
    "ldm.models.diffusion.ddpm": {
        "ldm.models.latent_diffusion": "LatentDiffusion LatentFinetuneDiffusion DiffusionWrapper",
        "ldm.models.latent_inpaint": "LatentInpaintDiffusion",
        "ldm.models.latent_depth": "LatentDepth2ImageDiffusion",
        "ldm.models.latent_upscale": "LatentUpscaleDiffusion LatentUpscaleFinetuneDiffusion",
        "ldm.models.unclip": "ImageEmbeddingConditionedLatentDiffusion",
        "ldm.models.ddpm": "DDPM",
    },
    "ldm.models.diffusion.ddim": {"ldm.samplers.published": "DDIMSampler"},
    "ldm.models.diffusion.plms": {"ldm.samplers.published": "PLMSSampler"},
    "ldm.models.diffusion.dpm_solver": {"ldm.samplers.published": "DPMSolverSampler"},
    "ldm.models.diffusion.dpm_solver.sampler": {"ldm.samplers.published": "DPMSolverSampler"},
    "ldm.modules.diffusionmodules.openaimodel": {
        "ldm.models.unet": "UNetModel ResBlock Upsample Downsample TimestepEmbedSequential",
        "ldm.models.attention": "AttentionBlock",
    },
    "ldm.modules.diffusionmodules.model": {"ldm.models.autoencoder": "Encoder Decoder ResnetBlock AttnBlock"},
    "ldm.modules.diffusionmodules.util": {
        "ldm.diffusion.published":
            "make_beta_schedule make_ddim_timesteps make_ddim_sampling_parameters "
            "extract_into_tensor noise_like",
        "ldm.diffusion.timesteps": "timestep_embedding",
        "ldm.util": "mean_flat",
        "ldm.models.attention": "zero_module",
    },
    "ldm.modules.attention": {
        "ldm.models.attention": "CrossAttention SpatialTransformer BasicTransformerBlock FeedForward GEGLU",
        "ldm.util": "default exists",
    },
    "ldm.modules.distributions.distributions": {"ldm.models.gaussian": "DiagonalGaussianDistribution"},
    "ldm.modules.ema": {"ldm.training.ema": "LitEma"},
    "ldm.modules.encoders.modules": {
        "ldm.models.text_clip": "FrozenCLIPEmbedder",
        "ldm.models.text_openclip": "FrozenOpenCLIPEmbedder",
        "ldm.models.image_clip": "FrozenOpenCLIPImageEmbedder ClipImageEmbedder",
        "ldm.models.noise_augmentation": "CLIPEmbeddingNoiseAugmentation",
    },
    "ldm.modules.midas.api": {"ldm.models.midas": "MiDaSInference load_midas_transform"},
    "ldm.data.util": {"ldm.models.midas": "AddMiDaS"},
    "ldm.modules.diffusionmodules.upscaling": {
        "ldm.models.noise_augmentation":
            "AbstractLowScaleModel SimpleImageConcat ImageConcatWithNoiseAugmentation",
    },
    "cldm.cldm": {"ldm.models.controlnet": "ControlLDM ControlNet ControlledUnetModel"},
    "cldm.model": {"ldm.reference_scripts": "create_model load_state_dict get_state_dict"},
    "cldm.hack": {"ldm.reference_scripts": "disable_verbosity enable_sliced_attention"},
    # In a checkout the scripts themselves are found first, and import the same functions.
    "scripts.txt2img": {"ldm.reference_scripts": "chunk load_model_from_config put_watermark"},
    "scripts.img2img": {"ldm.reference_scripts": "chunk load_img load_model_from_config"},
    "ldm.lr_scheduler": {"ldm.training.lr_scheduler": "LambdaLinearScheduler"},
}
PUBLISHED: dict[str, str] = {
    f"{old}.{name}": f"{new}.{name}"
    for old, moved in _MOVED.items()
    for new, names in moved.items()
    for name in names.split()
} | {
    "ldm.modules.attention.MemoryEfficientCrossAttention": "ldm.models.attention.CrossAttention",
    "cldm.ddim_hacked.DDIMSampler": "ldm.samplers.published.ControlDDIMSampler",
}

# Keys of published configurations that no longer matter, by the reason. A class that takes one still gets it.
_IGNORED = {
    "attention is always torch's scaled_dot_product_attention": "attn_type",
    "says which channels training logged": "c_concat_log_start c_concat_log_end",
    "weights come with --ckpt, or from the training configuration": "ckpt_path ckpt_paths",
    "latents are never clipped, whatever the reference class is passed": "clip_denoised",
    "segmentation autoencoders were never released": "colorize_nlabels",
    "names a column of the training data; the data set says it":
        "concat_keys cond_stage_key control_key embedding_key first_stage_key image_key low_scale_key "
        "masked_image_key noise_level_key",
    "replaced by conditioning_key": "concat_mode",
    "text encoders are called, never another method": "cond_stage_forward",
    "the training method says what is trained": "cond_stage_trainable freeze_embedder",
    "--device decides, for the whole model": "device to_cuda",
    "images have two dimensions": "dims",
    "belongs to training; its configuration says it":
        "ema_decay embedding_dropout learn_logvar lossconfig monitor reset_ema reset_num_ema_updates "
        "scheduler_config ucg_training use_checkpoint",
    "null in every published file for inference": "finetune_keys keep_finetune_dims",
    "harmless keys of checkpoints are known by name": "ignore_keys",
    "checkpoints are matched completely": "load_only_unet",
    "the sampling loop yields every step": "log_every_t",
    "weights of another shape are an error, never tiled": "make_it_fit",
    "noisy conditioning was never released; every published file says 1": "num_timesteps_cond",
    "--dtype decides": "use_bf16 use_fp16",
    "says which weights of a checkpoint to read": "use_ema",
    "unused in every published file": "use_positional_encodings",
    "weights are never downloaded; the checkpoint holds them": "version",
}
IGNORED_PARAMS = {key: reason for reason, keys in _IGNORED.items() for key in keys.split()}


def published_modules() -> set[str]:
    """Return the dotted names of all old modules and the packages above them (not `ldm` itself)."""
    modules = set()
    for name in PUBLISHED:
        parts = name.split(".")[:-1]
        modules.update(".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return modules - {"ldm"}


def resolve(dotted: str) -> Any:
    """Import the object that today's dotted name points to."""
    module, _, attribute = dotted.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


class _OldModule(ModuleType):
    """An old module: no code, only names fetched on first use."""

    def __getattr__(self, attribute: str) -> Any:
        published = f"{self.__name__}.{attribute}"
        if published in PUBLISHED:
            value = resolve(PUBLISHED[published])
            setattr(self, attribute, value)
            return value
        kept = [name for name in dir(self) if not name.startswith("_")]
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {attribute!r}; of the published names it keeps "
            f"{', '.join(kept)}; see ldm/published_names.py"
        )

    def __dir__(self) -> list[str]:
        prefix = self.__name__ + "."
        children = {name.removeprefix(prefix).split(".")[0] for name in PUBLISHED if name.startswith(prefix)}
        return sorted(children | set(super().__dir__()))


class _OldNamesFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find the old modules. It stands last in `sys.meta_path`, so a real module always wins."""

    def __init__(self) -> None:
        self.modules = published_modules()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.modules:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _OldModule(spec.name, "Names of the reference repository, kept for notebooks and wrappers.")

    def exec_module(self, module: ModuleType) -> None:
        """Leave the shell empty: attributes come from `_OldModule.__getattr__`."""


def install_import_finder() -> None:
    """Make the old modules importable. A second call changes nothing."""
    if not any(isinstance(finder, _OldNamesFinder) for finder in sys.meta_path):
        sys.meta_path.append(_OldNamesFinder())
