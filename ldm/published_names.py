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

PUBLISHED: dict[str, str] = {
    "ldm.models.diffusion.ddpm.LatentDiffusion": "ldm.models.latent_diffusion.LatentDiffusion",
    "ldm.models.diffusion.ddpm.LatentFinetuneDiffusion":
        "ldm.models.latent_diffusion.LatentFinetuneDiffusion",
    "ldm.models.diffusion.ddpm.LatentInpaintDiffusion": "ldm.models.latent_inpaint.LatentInpaintDiffusion",
    "ldm.models.diffusion.ddpm.LatentDepth2ImageDiffusion":
        "ldm.models.latent_depth.LatentDepth2ImageDiffusion",
    "ldm.models.diffusion.ddpm.LatentUpscaleDiffusion": "ldm.models.latent_upscale.LatentUpscaleDiffusion",
    "ldm.models.diffusion.ddpm.LatentUpscaleFinetuneDiffusion":
        "ldm.models.latent_upscale.LatentUpscaleFinetuneDiffusion",
    "ldm.models.diffusion.ddpm.ImageEmbeddingConditionedLatentDiffusion":
        "ldm.models.unclip.ImageEmbeddingConditionedLatentDiffusion",
    "ldm.models.diffusion.ddpm.DDPM": "ldm.models.ddpm.DDPM",
    "ldm.models.diffusion.ddpm.DiffusionWrapper": "ldm.models.latent_diffusion.DiffusionWrapper",
    "ldm.models.diffusion.ddim.DDIMSampler": "ldm.samplers.published.DDIMSampler",
    "ldm.models.diffusion.plms.PLMSSampler": "ldm.samplers.published.PLMSSampler",
    "ldm.models.diffusion.dpm_solver.DPMSolverSampler": "ldm.samplers.published.DPMSolverSampler",
    "ldm.models.diffusion.dpm_solver.sampler.DPMSolverSampler": "ldm.samplers.published.DPMSolverSampler",
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": "ldm.models.unet.UNetModel",
    "ldm.modules.diffusionmodules.openaimodel.ResBlock": "ldm.models.unet.ResBlock",
    "ldm.modules.diffusionmodules.openaimodel.Upsample": "ldm.models.unet.Upsample",
    "ldm.modules.diffusionmodules.openaimodel.Downsample": "ldm.models.unet.Downsample",
    "ldm.modules.diffusionmodules.openaimodel.AttentionBlock": "ldm.models.attention.AttentionBlock",
    "ldm.modules.diffusionmodules.openaimodel.TimestepEmbedSequential":
        "ldm.models.unet.TimestepEmbedSequential",
    "ldm.modules.diffusionmodules.model.Encoder": "ldm.models.autoencoder.Encoder",
    "ldm.modules.diffusionmodules.model.Decoder": "ldm.models.autoencoder.Decoder",
    "ldm.modules.diffusionmodules.model.ResnetBlock": "ldm.models.autoencoder.ResnetBlock",
    "ldm.modules.diffusionmodules.model.AttnBlock": "ldm.models.autoencoder.AttnBlock",
    "ldm.modules.diffusionmodules.util.make_beta_schedule": "ldm.diffusion.published.make_beta_schedule",
    "ldm.modules.diffusionmodules.util.timestep_embedding": "ldm.diffusion.timesteps.timestep_embedding",
    "ldm.modules.diffusionmodules.util.make_ddim_timesteps": "ldm.diffusion.published.make_ddim_timesteps",
    "ldm.modules.diffusionmodules.util.make_ddim_sampling_parameters":
        "ldm.diffusion.published.make_ddim_sampling_parameters",
    "ldm.modules.diffusionmodules.util.extract_into_tensor": "ldm.diffusion.published.extract_into_tensor",
    "ldm.modules.attention.CrossAttention": "ldm.models.attention.CrossAttention",
    "ldm.modules.attention.MemoryEfficientCrossAttention": "ldm.models.attention.CrossAttention",
    "ldm.modules.attention.SpatialTransformer": "ldm.models.attention.SpatialTransformer",
    "ldm.modules.attention.BasicTransformerBlock": "ldm.models.attention.BasicTransformerBlock",
    "ldm.modules.attention.FeedForward": "ldm.models.attention.FeedForward",
    "ldm.modules.attention.GEGLU": "ldm.models.attention.GEGLU",
    "ldm.modules.attention.default": "ldm.util.default",
    "ldm.modules.attention.exists": "ldm.util.exists",
    "ldm.modules.diffusionmodules.util.noise_like": "ldm.diffusion.published.noise_like",
    "ldm.modules.diffusionmodules.util.mean_flat": "ldm.util.mean_flat",
    "ldm.modules.diffusionmodules.util.zero_module": "ldm.models.attention.zero_module",
    "ldm.modules.distributions.distributions.DiagonalGaussianDistribution":
        "ldm.models.gaussian.DiagonalGaussianDistribution",
    "ldm.modules.ema.LitEma": "ldm.training.ema.LitEma",
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": "ldm.models.text_clip.FrozenCLIPEmbedder",
    "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder": "ldm.models.text_openclip.FrozenOpenCLIPEmbedder",
    "ldm.modules.encoders.modules.FrozenOpenCLIPImageEmbedder":
        "ldm.models.image_clip.FrozenOpenCLIPImageEmbedder",
    "ldm.modules.encoders.modules.ClipImageEmbedder": "ldm.models.image_clip.ClipImageEmbedder",
    "ldm.modules.midas.api.MiDaSInference": "ldm.models.midas.MiDaSInference",
    "ldm.modules.midas.api.load_midas_transform": "ldm.models.midas.load_midas_transform",
    "ldm.data.util.AddMiDaS": "ldm.models.midas.AddMiDaS",
    "ldm.modules.encoders.modules.CLIPEmbeddingNoiseAugmentation":
        "ldm.models.noise_augmentation.CLIPEmbeddingNoiseAugmentation",
    "ldm.modules.diffusionmodules.upscaling.AbstractLowScaleModel":
        "ldm.models.noise_augmentation.AbstractLowScaleModel",
    "ldm.modules.diffusionmodules.upscaling.SimpleImageConcat":
        "ldm.models.noise_augmentation.SimpleImageConcat",
    "ldm.modules.diffusionmodules.upscaling.ImageConcatWithNoiseAugmentation":
        "ldm.models.noise_augmentation.ImageConcatWithNoiseAugmentation",
    "cldm.cldm.ControlLDM": "ldm.models.controlnet.ControlLDM",
    "cldm.cldm.ControlNet": "ldm.models.controlnet.ControlNet",
    "cldm.cldm.ControlledUnetModel": "ldm.models.controlnet.ControlledUnetModel",
    "cldm.ddim_hacked.DDIMSampler": "ldm.samplers.published.ControlDDIMSampler",
    "cldm.model.create_model": "ldm.reference_scripts.create_model",
    "cldm.model.load_state_dict": "ldm.reference_scripts.load_state_dict",
    "cldm.model.get_state_dict": "ldm.reference_scripts.get_state_dict",
    "cldm.hack.disable_verbosity": "ldm.reference_scripts.disable_verbosity",
    "cldm.hack.enable_sliced_attention": "ldm.reference_scripts.enable_sliced_attention",
    # In a checkout the scripts themselves are found first, and import the same functions.
    "scripts.txt2img.chunk": "ldm.reference_scripts.chunk",
    "scripts.txt2img.load_model_from_config": "ldm.reference_scripts.load_model_from_config",
    "scripts.txt2img.put_watermark": "ldm.reference_scripts.put_watermark",
    "scripts.img2img.chunk": "ldm.reference_scripts.chunk",
    "scripts.img2img.load_img": "ldm.reference_scripts.load_img",
    "scripts.img2img.load_model_from_config": "ldm.reference_scripts.load_model_from_config",
    "ldm.lr_scheduler.LambdaLinearScheduler": "ldm.training.lr_scheduler.LambdaLinearScheduler",
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
        "ema_decay embedding_dropout l_simple_weight learn_logvar logvar_init loss_type lossconfig monitor "
        "original_elbo_weight reset_ema reset_num_ema_updates scheduler_config ucg_training use_checkpoint",
    "null in every published file for inference": "finetune_keys keep_finetune_dims",
    "harmless keys of checkpoints are known by name": "ignore_keys",
    "checkpoints are matched completely": "load_only_unet",
    "the sampling loop yields every step": "log_every_t",
    "weights of another shape are an error, never tiled": "make_it_fit",
    "noisy conditioning was never released; every published file says 1": "num_timesteps_cond",
    "--dtype decides": "use_bf16 use_fp16",
    "says which weights of a checkpoint to read": "use_ema",
    "unused in every published file": "use_positional_encodings",
    "affects only DDPM's posterior, which no sampler of the scripts uses": "v_posterior",
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
