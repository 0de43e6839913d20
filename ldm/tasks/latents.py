"""Latents in files: noise to start from, finished ones, and where a run was stopped.

    file = read_latents("outputs/interrupted-00000.safetensors")
    for batch in generate(model, request, resume=file.position): ...

A file is a .safetensors with the latents (n, c, h, w), scaled as the sampler sees them, as `latents` (or as
its only tensor). Its metadata entry `ldm` is a JSON record, and the record's `kind` says what they are:

    (none)     latents of other origin: txt2img starts from them as its noise, img2img as its image
    final      of one image, as `--save-latents` keeps them
    stopped    of the batch that a run was stopped in, before step `step`, with `memory.0`, ... of the sampler
               and `noise.*`, the generators, and `made.*` of earlier stages of the batch; what is computed
               from prompts is computed again
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import InputError, Stopped
from ldm.files.reading import no_file, reading
from ldm.samplers.base import Noise
from ldm.samplers.loop import KeyedNoise
from ldm.tasks.noise import BatchNoise, NoiseSource
from ldm.tasks.tiles import Tiling
from ldm.wording import counted


@dataclass(frozen=True)
class SampleState:
    """Where sampling stands: all that is needed to continue exactly.

    `sample_loop(sampler, denoise, state.x_t, cond, start=state.step, memory=state.memory)` continues.
    """

    step: int  # the next step; the number of steps when all are done
    x_t: Tensor  # (b, c, h, w) latents before that step
    memory: tuple[Tensor, ...] = ()  # the sampler's, before that step
    upcast: bool = False  # half precision had failed before: the UNet continues in float32


@dataclass(frozen=True)
class Position:
    """Where a run stands: before a step of one of its batches, with all that is needed to resume exactly."""

    prompts: list[str]  # of the whole run, once
    first: int  # number of the batch's first image in the run
    stage: int  # 1 in the second pass of two
    state: SampleState
    noise: dict[str, Tensor]  # NoiseSource.state() here
    made: dict[str, Tensor] = field(default_factory=dict)  # by earlier stages, where the task says so
    tilings: dict[tuple[int, int], Tiling] = field(default_factory=dict)  # chosen for latents of these sides

    def is_of(self, noise: Noise | KeyedNoise) -> bool:
        """Tell whether this is within the batch that a source of noise belongs to."""
        return isinstance(noise, BatchNoise) and (noise.first, noise.stage) == (self.first, self.stage)


class StoppedAt(Stopped):
    """A run was interrupted; it can be resumed at `position`."""

    def __init__(self, position: Position):
        super().__init__(f"stopped before step {position.state.step + 1}")
        self.position = position


@dataclass(frozen=True)
class LatentsFile:
    """What is read from a file of latents."""

    path: Path
    latents: Tensor  # (n, c, h, w) float32 on the CPU
    record: dict[str, Any]  # empty if another program wrote it
    position: Position | None = None  # of a stopped run

    @property
    def kind(self) -> str | None:
        return self.record.get("kind")


def final_file(latents: Tensor, record: dict[str, Any]) -> bytes:
    """Return the file of the latents (c, h, w) of a finished image."""
    return _bytes({"latents": latents[None].float()}, record | {"kind": "final"})


def stopped_file(position: Position, record: dict[str, Any]) -> bytes:
    """Return the file of a run that was stopped."""
    state = position.state
    tensors = {"latents": state.x_t}
    tensors |= {f"memory.{i}": x for i, x in enumerate(state.memory)}
    tensors |= {f"noise.{name}": x for name, x in position.noise.items()}
    tensors |= {f"made.{name}": x for name, x in position.made.items()}
    where = {"prompts": position.prompts, "first": position.first, "stage": position.stage}
    where |= {"kind": "stopped", "step": state.step, "upcast": state.upcast}
    where["tilings"] = [[*sides, asdict(tiling)] for sides, tiling in position.tilings.items()]
    return _bytes(tensors, record | where)


def _bytes(tensors: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    plain = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    return save(plain, {"ldm": json.dumps(record, sort_keys=True, default=str)})


def read_record(path: str | Path) -> dict[str, Any]:
    """Return the JSON record of a file of latents, empty if it has none; reads no tensor.

    Raises: InputError, CheckpointError in one line.
    """
    from ldm.checkpoint.safetensors_file import checked_header
    from ldm.checkpoint.sniff import Container, sniff

    path = Path(path)
    with reading(path):
        if what := no_file(path):
            raise InputError(
                f"--latents {path}: {what}; expected a .safetensors file, of a stopped run or --save-latents"
            )
        if sniff(path) is not Container.SAFETENSORS:
            raise InputError(f"{path} is no .safetensors file; --latents takes one")
        _, metadata = checked_header(path)
    try:
        record = json.loads(metadata.get("ldm", "{}"))
    except ValueError as error:
        raise InputError(f"{path}: its record is damaged ({error})") from error
    return record if isinstance(record, dict) else {}


def read_latents(path: str | Path) -> LatentsFile:
    """Read a file of latents.

    Raises: InputError, CheckpointError in one line.
    """
    from ldm.checkpoint.safetensors_file import read

    path, record = Path(path), read_record(path)
    with reading(path):
        tensors, _ = read(path)
    latents = tensors.get("latents", next(iter(tensors.values())) if len(tensors) == 1 else None)
    if latents is None or not latents.is_floating_point() or latents.dim() not in (3, 4):
        raise InputError(
            f"{path} holds {', '.join(sorted(tensors)[:4]) or 'nothing'}: expected `latents` (n, c, h, w)"
        )
    latents = latents.float().reshape(-1, *latents.shape[-3:]).clone()  # the file may change or go
    if not torch.isfinite(latents).all():
        raise InputError(f"{path}: its latents hold NaN or infinity")
    position = None
    try:
        if record.get("kind") == "stopped":
            position = _position(latents, tensors, record)
        elif record.get("kind") == "final":
            _check_final(record)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its record is damaged ({type(error).__name__}: {error})") from error
    return LatentsFile(path, latents, record, position)


def _check_final(record: dict[str, Any]) -> None:
    numbers = [record[name] for name in ("height", "width", "iteration", "batch", "index_in_batch")]
    if not all(type(number) is int for number in [*numbers, record["images_in_batch"]]):
        raise ValueError("its numbers are none")
    if not 0 <= record["index_in_batch"] < record["images_in_batch"] or min(numbers[:2]) < 1:
        raise ValueError("its numbers contradict each other")
    if not isinstance(record["prompt"], str):
        raise ValueError("its prompt is none")
    tile = Tiling(**record.get("tiling", {})).decoder_tile
    if tile is not None and (type(tile) is not int or tile < 1):
        raise ValueError("its tiles are none")
    if not isinstance(record.get("resolved", {}), dict):
        raise ValueError("its options are none")


def _position(latents: Tensor, tensors: dict[str, Tensor], record: dict[str, Any]) -> Position:
    count = sum(name.startswith("memory.") for name in tensors)
    memory = tuple(tensors[f"memory.{i}"].clone() for i in range(count))
    state = SampleState(int(record["step"]), latents, memory, bool(record["upcast"]))
    noise, made = (
        {name.removeprefix(prefix): x.clone() for name, x in tensors.items() if name.startswith(prefix)}
        for prefix in ("noise.", "made.")
    )
    prompts = [str(prompt) for prompt in record["prompts"]]
    if not prompts:
        raise ValueError("no prompts")
    tilings = {(h, w): Tiling(**tiling) for h, w, tiling in record["tilings"]}
    return Position(prompts, int(record["first"]), int(record["stage"]), state, noise, made, tilings)


def restored(position: Position, noise: BatchNoise, like: Tensor, steps: int) -> SampleState:
    """Put the random numbers of a batch back to where they stood; returns its state on the device of `like`.

    Raises: InputError where the batch is of another shape, or its generators are of another device.
    """
    state = position.state
    if state.x_t.shape != like.shape or not 0 <= state.step <= steps:
        raise InputError(
            f"cannot resume: latents {_shape(state.x_t.shape)} before step {state.step + 1} are given, and "
            f"this run has {_shape(like.shape)} and {counted(steps, 'step')}; give the options of the "
            "run that was interrupted"
        )
    restore_noise(position, noise.source)
    memory = tuple(x.to(like.device) for x in state.memory)
    return replace(state, x_t=state.x_t.to(like.device), memory=memory)


def restore_noise(position: Position, source: NoiseSource) -> None:
    """Put random numbers back to where they stood. Raises: InputError where they are of another kind."""
    try:
        source.restore(position.noise)
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(
            "cannot resume: the random generators that were saved are of another device or --rng; "
            "use the same --device and --rng"
        ) from error


def expand_latents(
    latents: Tensor, count: int, shape: tuple[int, ...], batch_size: int, device: torch.device
) -> Tensor:
    """Expand given latents (1 or batch_size, c, h, w) to `count` samples of a batch.

    Args:
        shape: (c, h, w) that they must have.

    Raises: InputError where they have another.
    """
    if latents.shape[1:] != shape or len(latents) not in (1, batch_size):
        raise InputError(
            f"latents are {_shape(latents.shape)}: expected {_shape((batch_size, *shape))} for this size and "
            f"batch, or {_shape((1, *shape))} for all images alike; change the size or the batch"
        )
    return latents.expand(batch_size, *shape)[:count].to(device)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
