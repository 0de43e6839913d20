"""Conditioning augmentation: add noise to the conditioning, and pass its level to the UNet.

    z = sqrt(abar_l) x + sqrt(1 - abar_l) eps                        (arXiv 2106.15282, section 4)

l is a level of a separate noise schedule. The upscaler adds noise to the low-resolution image so that its
defects are not copied; unCLIP adds noise to the image embedding so that variations may deviate further.
Level 0 still adds a little noise, because abar_0 is not 1. Levels and noise that are not given are drawn in
the order of the reference: the level first, then the noise.
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
from ldm.files.reading import reading

STATISTICS_SUFFIXES = (".th", ".pt", ".npz", ".safetensors")
NUM_BUFFERS = 8     # files contain the schedule's buffers except those of the posterior
REPOSITORY_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PACKAGE_CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class AbstractLowScaleModel(nn.Module):
    """A noise schedule, stored in buffers with the LDM key names; the input is returned unchanged.

    Args:
        noise_schedule_config: beta_schedule, timesteps, linear_start, linear_end, cosine_s; see
            ldm.diffusion.schedule.make_betas. None: no schedule.
    """

    def __init__(self, noise_schedule_config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.schedule: Schedule | None = None
        if noise_schedule_config is not None:
            self.schedule = Schedule(make_betas(**noise_schedule_config))
        for name, buffer in self._ldm_buffers().items():
            self.register_buffer(name, buffer)

    def _ldm_buffers(self) -> dict[str, Tensor]:
        tables = {} if self.schedule is None else self.schedule.published_buffers()
        return dict(list(tables.items())[:NUM_BUFFERS])

    def materialise_buffers(self, device: torch.device | str) -> None:
        """Fill the buffers from the float64 schedule, because those of a file may have half precision."""
        for name, buffer in self._ldm_buffers().items():
            setattr(self, name, buffer.to(device))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return x_start with noise of level t (b,); the noise is drawn on x_start's device unless given."""
        noise = torch.randn_like(x_start) if noise is None else noise.to(x_start)
        return add_noise(self.schedule, x_start, noise, t).to(x_start.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    def decode(self, x: Tensor) -> Tensor:
        return x


class SimpleImageConcat(AbstractLowScaleModel):
    """The image without noise, at noise level 0."""

    def __init__(self) -> None:
        super().__init__(noise_schedule_config=None)
        self.max_noise_level = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros(len(x), dtype=torch.long, device=x.device)


class ImageConcatWithNoiseAugmentation(AbstractLowScaleModel):
    """Adds noise to an image that is concatenated with the latents.

    Args:
        max_noise_level: training draws levels below it; a user may pass levels up to it.
    """

    def __init__(self, noise_schedule_config: dict[str, Any], max_noise_level: int = 1000) -> None:
        super().__init__(noise_schedule_config)
        known = self.schedule.num_timesteps
        if not 0 < max_noise_level <= known:
            raise ConfigError(f"max_noise_level is {max_noise_level}; expected 1 to {known}, the timesteps")
        self.max_noise_level = max_noise_level

    def levels(self, x: Tensor, noise_level: Tensor | int | None) -> Tensor:
        """Return noise levels as int64 (b,) on the device of x; None draws them below max_noise_level.

        Raises:
            InputError: a level is outside the schedule, or their number is neither 1 nor the batch size.
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
        """Return x with noise (b, ...) and the levels (b,), which are the label of the UNet."""
        levels = self.levels(x, noise_level)
        return self.q_sample(x, levels, noise), levels


class CLIPEmbeddingNoiseAugmentation(ImageConcatWithNoiseAugmentation):
    """Adds noise to an image embedding that is normalised to mean 0 and standard deviation 1.

    Args:
        clip_stats_path: file of (mean, standard deviation), each (D,): .th or .pt (a tuple, or a dict of
            `mean` and `std`), .npz or .safetensors. It is looked for as given, next to the checkpoint and in
            configs/, with any of these suffixes and with any trailing part of its path.
            None: 0 and 1, as the H model was trained. A checkpoint that contains `data_mean` and `data_std`,
            as converted files do, needs no file.
        timestep_dim: width of the embedding of the level, and of the default statistics.

    The buffers are not persistent, because reference checkpoints do not contain the statistics.
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
        """Search this folder, that of the checkpoint, before the others."""
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
        """Return the file as given or with another suffix, or any trailing part of its path in a folder."""
        given = Path(path).expanduser()
        ends = [Path(*given.parts[i:]) for i in range(len(given.parts))]
        for place in (given, *(folder / end for folder in self.folders for end in ends)):
            for suffix in (given.suffix, *STATISTICS_SUFFIXES):
                if (found := place.parent / (place.stem + suffix)).is_file():
                    return found
        raise CheckpointError(
            f"clip_stats_path {path}: no such file, and no {given.name} next to the checkpoint or in "
            "configs; it contains the mean and standard deviation of the image embeddings: put it next to "
            "the checkpoint"
        )

    def scale(self, x: Tensor) -> Tensor:
        """Normalise embeddings (b, D) to mean 0 and standard deviation 1.

        Raises:
            CheckpointError: the statistics have another width.
        """
        known = self.data_mean.shape[1]
        if x.shape[1] != known:
            raise CheckpointError(
                f"the statistics have width {known}, but the image embeddings of this model have "
                f"{x.shape[1]}; is {self.clip_stats_path or 'timestep_dim'} that of another image encoder?"
            )
        return (x - self.data_mean.to(x)) / self.data_std.to(x)

    def unscale(self, x: Tensor) -> Tensor:
        """Undo `scale`."""
        return x * self.data_std.to(x) + self.data_mean.to(x)

    def forward(
        self, x: Tensor, noise_level: Tensor | int | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the embeddings with noise (b, D) and the embedding of the levels (b, timestep_dim)."""
        levels = self.levels(x, noise_level)
        z = self.unscale(self.q_sample(self.scale(x), levels, noise))
        return z, timestep_embedding(levels, self.timestep_dim).to(x.dtype)


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Read the mean and standard deviation of image embeddings, each (D,) float32, without running code.

    Raises:
        CheckpointError: the file does not contain two finite vectors of one length, the second positive.
    """
    what = f"{path}: cannot be read as embedding statistics"
    with reading(path, lambda reason: CheckpointError(f"{what}: {reason}")):
        content = _read(path)
    if isinstance(content, dict):
        content = [content[name] for name in ("mean", "std") if name in content]
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise CheckpointError(f"{path}: contains no mean and std; expected a tuple of two vectors")
    mean, std = (torch.as_tensor(x, device="cpu").detach().float().flatten() for x in content)
    if len(mean) != len(std) or not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise CheckpointError(f"{path}: mean ({len(mean)}) and std ({len(std)}) are not two finite vectors")
    if not bool((std > 0).all()):
        raise CheckpointError(f"{path}: std has values that are not positive; expected standard deviations")
    return mean, std


def _read(path: Path) -> Any:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
