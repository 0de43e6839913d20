"""Noise added to the conditioning itself, and its amount told to the UNet (arXiv 2106.15282, section 4).

    z = sqrt(abar_l) x + sqrt(1 - abar_l) eps

at a level l of a noise schedule of its own. The upscaler noises the low-resolution picture so that its
faults are not copied; unCLIP noises the image embedding so that the variations are freer. Level 0 still adds
a little: abar_0 is not 1. Random numbers are taken as arguments; what is not given is drawn as published, the
level first, then the noise.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.diffusion.prediction import add_noise
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.diffusion.timesteps import timestep_embedding
from ldm.errors import CheckpointError, ConfigError, InputError

STATISTICS_SUFFIXES = (".th", ".pt", ".npz", ".safetensors")
NUM_BUFFERS = 8     # of the schedule's published tables, those without the posterior, stand in the files
REPOSITORY_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PACKAGE_CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class AbstractLowScaleModel(nn.Module):
    """A noise schedule of its own, as buffers under the published names; leaves its input as it is.

    Args:
        noise_schedule_config: beta_schedule, timesteps, linear_start, linear_end, cosine_s; see
            ldm.diffusion.schedule.make_betas. None: no schedule.
    """

    def __init__(self, noise_schedule_config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.schedule: Schedule | None = None
        if noise_schedule_config is not None:
            self.schedule = Schedule(_betas(**noise_schedule_config))
        for name, buffer in self._published_buffers().items():
            self.register_buffer(name, buffer)

    def _published_buffers(self) -> dict[str, Tensor]:
        tables = {} if self.schedule is None else self.schedule.published_buffers()
        return dict(list(tables.items())[:NUM_BUFFERS])

    def materialise_buffers(self, device: torch.device | str) -> None:
        """Fill the buffers from the float64 schedule; a file's copies may be in half precision."""
        for name, buffer in self._published_buffers().items():
            setattr(self, name, buffer.to(device))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return x_start noised to level t (b,); draws the noise on x_start's device unless given."""
        noise = torch.randn_like(x_start) if noise is None else noise.to(x_start)
        return add_noise(self.schedule, x_start, noise, t).to(x_start.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    def decode(self, x: Tensor) -> Tensor:
        return x


class SimpleImageConcat(AbstractLowScaleModel):
    """The picture as it is, at noise level 0."""

    def __init__(self) -> None:
        super().__init__(noise_schedule_config=None)
        self.max_noise_level = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros(len(x), dtype=torch.long, device=x.device)


class ImageConcatWithNoiseAugmentation(AbstractLowScaleModel):
    """Noise for a picture that is joined to the latents.

    Args:
        max_noise_level: levels drawn in training lie below it, and those of a user up to it.
    """

    def __init__(self, noise_schedule_config: dict[str, Any], max_noise_level: int = 1000) -> None:
        super().__init__(noise_schedule_config)
        known = self.schedule.num_timesteps
        if not 0 < max_noise_level <= known:
            raise ConfigError(f"max_noise_level is {max_noise_level}; expected 1 to {known}, the timesteps")
        self.max_noise_level = max_noise_level

    def levels(self, x: Tensor, noise_level: Tensor | int | None) -> Tensor:
        """Return noise levels as int64 (b,) beside x; drawn below max_noise_level where None.

        Raises:
            InputError: a level outside the schedule, or not one level, or one a sample.
        """
        if noise_level is None:
            return torch.randint(0, self.max_noise_level, (len(x),), device=x.device)
        given = noise_level.flatten().tolist() if isinstance(noise_level, Tensor) else [noise_level]
        last = self.schedule.num_timesteps - 1
        if len(given) not in (1, len(x)) or not all(isinstance(n, int) and 0 <= n <= last for n in given):
            raise InputError(
                f"noise level {', '.join(map(str, given))}: expected an integer from 0 to {last}, or one for "
                f"each of {len(x)} samples"
            )
        if len(given) == 1:
            return torch.full((len(x),), given[0], dtype=torch.long, device=x.device)
        return noise_level.flatten().to(x.device, torch.long)

    def forward(
        self, x: Tensor, noise_level: Tensor | int | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the noised x (b, ...) and the levels (b,), which the UNet takes as its label."""
        levels = self.levels(x, noise_level)
        return self.q_sample(x, levels, noise), levels


class CLIPEmbeddingNoiseAugmentation(ImageConcatWithNoiseAugmentation):
    """Noise for an image embedding, in units in which embeddings have mean 0 and deviation 1.

    Args:
        clip_stats_path: file of (mean, deviation), each (D,): .th or .pt (a tuple, or a dict of `mean` and
            `std`), .npz or .safetensors. Looked for as given, beside the checkpoint and in configs/, of any
            of these kinds, with as many of its folders as are there.
            None: 0 and 1, as the H model was trained. A checkpoint that holds `data_mean` and `data_std`
            itself, as converted files do, needs no file.
        timestep_dim: width of the embedding of the level, and of 0 and 1.

    Published files do not hold the statistics, so the buffers are not persistent.
    """

    OPTIONAL_BUFFERS = ("data_mean", "data_std")

    def __init__(
        self,
        noise_schedule_config: dict[str, Any],
        max_noise_level: int = 1000,
        clip_stats_path: str | None = None,
        timestep_dim: int = 256,
    ) -> None:
        super().__init__(noise_schedule_config, max_noise_level)
        self.clip_stats_path = clip_stats_path
        self.timestep_dim = timestep_dim
        self.folders = [REPOSITORY_CONFIGS, PACKAGE_CONFIGS]
        for name in ("data_mean", "data_std"):
            self.register_buffer(name, torch.empty(1, timestep_dim), persistent=False)
        if not self.data_mean.is_meta:
            self._fill_statistics(self.data_mean.device)

    def look_beside(self, folder: Path) -> None:
        """Search this folder too, before the others: the checkpoint's."""
        self.folders.insert(0, folder)

    def materialise_buffers(self, device: torch.device | str) -> None:
        super().materialise_buffers(device)
        if self.data_mean.is_meta or self.data_std.is_meta:
            self._fill_statistics(device)

    def _fill_statistics(self, device: torch.device | str) -> None:
        mean, std = torch.zeros(self.timestep_dim), torch.ones(self.timestep_dim)
        if self.clip_stats_path is not None:
            mean, std = read_statistics(self._find(self.clip_stats_path))
        self.data_mean = mean[None].to(device)
        self.data_std = std[None].to(device)

    def _find(self, path: str) -> Path:
        """Return the file as given or of another kind; in a folder, below any end of the path."""
        given = Path(path).expanduser()
        ends = [Path(*given.parts[i:]) for i in range(len(given.parts))]
        for place in (given, *(folder / end for folder in self.folders for end in ends)):
            for suffix in (given.suffix, *STATISTICS_SUFFIXES):
                if (found := place.parent / (place.stem + suffix)).is_file():
                    return found
        raise CheckpointError(
            f"clip_stats_path {path}: no such file, and none named {given.name} beside the checkpoint or in "
            "configs; it holds the mean and deviation of the image embeddings: put it beside the checkpoint"
        )

    def scale(self, x: Tensor) -> Tensor:
        """Bring embeddings (b, D) to mean 0 and deviation 1.

        Raises:
            CheckpointError: the statistics are of embeddings of another width.
        """
        known = self.data_mean.shape[1]
        if x.shape[1] != known:
            raise CheckpointError(
                f"statistics of image embeddings of {known} numbers, and this model's have {x.shape[1]}; "
                f"is {self.clip_stats_path or 'timestep_dim'} that of another image encoder?"
            )
        return (x - self.data_mean.to(x)) / self.data_std.to(x)

    def unscale(self, x: Tensor) -> Tensor:
        """Undo `scale`."""
        return x * self.data_std.to(x) + self.data_mean.to(x)

    def forward(
        self, x: Tensor, noise_level: Tensor | int | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the noised embeddings (b, D) and the embedding of their levels (b, timestep_dim)."""
        levels = self.levels(x, noise_level)
        z = self.unscale(self.q_sample(self.scale(x), levels, noise))
        return z, timestep_embedding(levels, self.timestep_dim).to(x.dtype)


def _betas(
    beta_schedule: str = "linear",
    timesteps: int = 1000,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> np.ndarray:
    """Return the betas of a `noise_schedule_config`."""
    return make_betas(beta_schedule, timesteps, linear_start, linear_end, cosine_s)


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Read the mean and deviation of image embeddings, each (D,) float32; runs no code of the file.

    Raises:
        CheckpointError: not a pair of finite vectors of one length with positive deviations.
    """
    try:
        content = _read(path)
    except Exception as error:      # whatever a reader makes of foreign bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as embedding statistics: {reason}") from error
    if isinstance(content, dict):
        content = [content[name] for name in ("mean", "std") if name in content]
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise CheckpointError(f"{path}: holds no pair of mean and std; expected a tuple of two vectors")
    mean, std = (torch.as_tensor(x, device="cpu").detach().float().flatten() for x in content)
    if len(mean) != len(std) or not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise CheckpointError(f"{path}: mean ({len(mean)}) and std ({len(std)}) are not two finite vectors")
    if not bool((std > 0).all()):
        raise CheckpointError(f"{path}: std holds values that are not positive; expected deviations")
    return mean, std


def _read(path: Path) -> Any:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
