"""Say what a file or folder is without reading its weights: in well under a second, without torch."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.checkpoint.classify import CONFIGS, SCHEDULE, TEXT_TO_IMAGE_2, classify, of_no_part
from ldm.checkpoint.controlnet import DIFFERENCE, pooled_by
from ldm.checkpoint.delta import base_of, completed
from ldm.checkpoint.header import read_header
from ldm.checkpoint.identity import Identity, how_to_export
from ldm.checkpoint.one_file import Opened
from ldm.checkpoint.parts import EMA
from ldm.checkpoint.sniff import Container, shown, sniff
from ldm.checkpoint.stored import Stored
from ldm.config import find_weights
from ldm.errors import NotACheckpointError
from ldm.files.reading import reading

CONTAINERS = {
    Container.SAFETENSORS: "safetensors",
    Container.ZIP: "torch zip",
    Container.PICKLE: "torch, before 1.6",
    Container.FOLDER: "folder",
}
# YAML -> digest of the names and shapes in an LDM file (`is_reference`)
REFERENCES = {
    "v1-inference": "26f78cf1a71c42ba",
    "v2-inference": "bc47122f775f154f",
    "v2-inference-v": "bc47122f775f154f",
    "v2-inpainting-inference": "529296e2b701c48e",
    "v2-midas-inference": "aa9f49e67e99e935",
    "x4-upscaling": "01ef9e03b8be72f7",
    "v2-1-stable-unclip-h-inference": "c83ea7ab2dc41470",
    "v2-1-stable-unclip-l-inference": "a46273e76b0d716b",
    "cldm_v15": "58c777a835257cd7",
    "cldm_v21": "e8eae688adbaf088",
}
SHIPPED_CONFIGS = {*CONFIGS.values(), *TEXT_TO_IMAGE_2.values()}


def identify(path: str | Path) -> Identity:
    """Return what a .ckpt, .pt, .bin or .safetensors file or a diffusers folder holds.

    Raises:
        CheckpointError: the file or folder cannot be read; see also `ldm.jobs.choosing.check_loads`.
    """
    return described(open_headers(path))


def open_headers(path: str | Path) -> Opened:
    """Open weights as `open_weights` does, but with names, dtypes and shapes (`Stored`) in place of tensors.

    Raises: CheckpointError, as opening the weights does.
    """
    path = find_weights(path)
    with reading(path):
        container = sniff(path)
        if container is Container.FOLDER:
            from ldm.checkpoint.folder import open_folder

            opened = open_folder(path, read=read_header)
        else:
            shapes, metadata, files = _header(path, container)
            opened = Opened(path, container, {"": shapes}, {}, metadata, files)
    if not any(opened.parts.values()):
        raise NotACheckpointError(f"{path}: holds no weights; give a .ckpt or .safetensors file")
    return opened


def described(opened: Opened) -> Identity:
    """Return what the headers of a file or folder say that it is."""
    path, metadata = opened.path, opened.metadata
    shapes = names_and_shapes(opened)
    identity = classify(shapes, metadata, opened.configs)
    config = metadata.get("sd.config")
    return replace(
        identity,
        config=config if config in SHIPPED_CONFIGS else identity.config,
        notes=[
            *_notes_on_training(path, identity), *identity.notes, *_note_on_foreign(shapes),
            *_notes(identity, metadata), *_note_on_control(path, identity, metadata, opened.configs),
            *_note_on_base(opened.container, opened.files),
        ],
        path=str(path),
        container=CONTAINERS[opened.container],
        bytes=sum(file.stat().st_size for file in opened.files),
    )


def names_and_shapes(opened: Opened) -> dict[str, Stored]:
    """Return all tensors of opened headers; those of a diffusers folder as PART/NAME."""
    return {
        f"{part}/{name}" if part else name: x
        for part, tensors in opened.parts.items()
        for name, x in tensors.items()
    }


def is_reference(shapes: dict[str, Stored], config: str) -> bool:
    """Tell, without torch, whether these are the names and shapes of the reference model of a YAML.

    EMA weights next to raw ones and the noise schedule do not count. False says nothing: a model may lack
    tensors that nothing needs, or have further ones.
    """
    lines = sorted(
        f"{name} {x.shape} {'float' in x.dtype}"
        for name, x in shapes.items()
        if not SCHEDULE.fullmatch(name) and not name.startswith(EMA)
    )
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return digest == REFERENCES.get(Path(config).stem)


def _header(path: Path, container: Container) -> tuple[dict[str, Stored], dict[str, str], list[Path]]:
    """Return tensors and metadata of one file, of a difference those of the whole model; and all it is in."""
    shapes, metadata = read_header(path, container)
    base = base_of(path, metadata)
    if base is None:
        return shapes, metadata, [path]
    with reading(base):
        theirs, said = read_header(base, sniff(base))
    return *completed(path, shapes, metadata, theirs, said), [path, base]


def _note_on_foreign(shapes: dict[str, Stored]) -> list[str]:
    names = [name for name in of_no_part(shapes) if "/" not in name]
    if not names:
        return []
    some = ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")
    return [f"{len(names)} of its tensors belong to no part of a model ({some}); loading leaves them out"]


def _note_on_base(container: Container, files: list[Path]) -> list[str]:
    if container is Container.FOLDER or len(files) == 1:
        return []
    alone = files[0].stat().st_size / 1e6
    return [f"the file holds what differs from {files[1].name} ({alone:.1f} MB); both are read"]


def _note_on_control(
    path: Path, identity: Identity, metadata: dict[str, str], configs: dict[str, dict[str, Any]]
) -> list[str]:
    """Say what the names and shapes of a ControlNet do not."""
    if identity.kind != "controlnet":
        return []
    found = []
    if identity.variant == DIFFERENCE:
        found.append("it is added to the UNet's own weights when it is loaded")
    pooled = pooled_by(path, metadata, configs.get("controlnet", {}))
    if pooled is not None:
        found.append(f"its residuals are averaged over the image (global average pooling), says {pooled}")
    return found


def _notes_on_training(path: Path, identity: Identity) -> list[str]:
    return [how_to_export(path)] if identity.kind == "training" else []


def _notes(identity: Identity, metadata: dict[str, str]) -> list[str]:
    """Return what else a user may want to know, one sentence each."""
    notes = []
    if identity.is_model and identity.lacks:
        notes.append(f"it has no {' and no '.join(identity.lacks)}, so it makes no images by itself")
    if identity.weights == "raw+ema":
        notes.append("it holds raw and EMA weights of the UNet: --weights ema takes the latter")
    if metadata.get("holds"):
        notes.append(f"besides the weights it holds {metadata['holds']}, which loading skips")
    if metadata.get("global_step", "").isdigit():
        notes.append(f"saved at training step {int(metadata['global_step']):,}")
    if identity.is_model:
        notes.append("only names and sizes were read; loading checks that no weight is NaN or infinite")
    return notes
