"""Open a diffusers folder: a whole pipeline (model_index.json), or one part (config.json and weights).

    PIPELINE/model_index.json               which parts there are
    PIPELINE/scheduler/scheduler_config.json
    PIPELINE/unet/config.json
    PIPELINE/unet/diffusion_pytorch_model.safetensors           or .bin
    PIPELINE/unet/diffusion_pytorch_model.fp16.safetensors      another variant of the same weights
    PIPELINE/text_encoder/model.safetensors                     or pytorch_model.bin
    PIPELINE/unused.safetensors             of our conversion: LDM key names that have no place in a part
    PART/NAME.safetensors.index.json        {"weight_map": {tensor: shard}}
    PART/NAME-00001-of-00002.safetensors    a shard

No name in a JSON file and no symbolic link leads out of the folder.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoint.identity import model_of_run
from ldm.checkpoint.one_file import Opened, read_file
from ldm.checkpoint.parts import TABLE
from ldm.checkpoint.safetensors_file import without_repeats
from ldm.checkpoint.sniff import Container, shown, sniff
from ldm.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError
from ldm.files.reading import reading
from ldm.wording import counted

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

logger = logging.getLogger(__name__)

Reader = Callable[[Path, Container], "tuple[dict[str, Any], dict[str, str]]"]

MODEL_INDEX = "model_index.json"
ASIDE = "unused.safetensors"                # reference tensors that diffusers has no place for: ours alone
CONFIGS = ("config.json", "scheduler_config.json")
MAX_JSON_BYTES = 16_000_000
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
WEIGHTS = re.compile(rf"({'|'.join(STEMS)})(\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)")
INDEX = re.compile(WEIGHTS.pattern + r"\.index(\.(?P<late_variant>\w+))?\.json")
SHARD = re.compile(rf"({'|'.join(STEMS)})\b.*-\d{{5}}-of-\d{{5}}\b.*")
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
FULL_PRECISION = ("", "fp32")               # the variants to prefer, in this order

# Classes without weights that a model needs.
WEIGHTLESS = re.compile(r".*(Scheduler|Tokenizer|FeatureExtractor|Processor|SafetyChecker|Watermark)\w*")


def open_folder(path: Path, variant: str | None = None, read: Reader = read_file) -> Opened:
    """Open the weights of every part; see `open_weights`. `read` takes one file to tensors and metadata.

    Raises:
        NotACheckpointError: no weights here; the text says what to give instead.
        DamagedCheckpointError: a listed file is missing, or the JSON is malformed or leads out of the folder.
        CheckpointError: `variant` is in none of the parts; what a weights file may raise.
    """
    configs: dict[str, dict[str, Any]] = {}
    if (path / MODEL_INDEX).exists():
        configs["model_index"] = _read_json(path / MODEL_INDEX, path)
        folders = _parts(configs["model_index"], path)
        configs |= _configs(folders, path)
        folders = {part: folder for part, (folder, has_weights) in folders.items() if has_weights}
    else:
        found = _configs({"": (path, True)}, path)
        part = _part_alone(found.get("", {}), path)
        if found:
            configs[part] = found[""]
        folders = {part: path}
    sets = {part: _sets(folder) for part, folder in folders.items()}
    _check_variant(variant, sets, path)
    parts, metadata, files = {}, {}, []
    for part, choices in sets.items():
        if not choices:
            raise _no_weights(part, folders[part], path)
        chosen = _choose(choices, variant, folders[part])
        parts[part], said, its_files = _read_set(chosen.file, path, read)
        metadata |= said
        files += its_files
    if (path / ASIDE).exists():
        parts["unused"], said = _read_weights(path / ASIDE, path, read)
        metadata |= said
        files.append(path / ASIDE)
    return Opened(path, Container.FOLDER, parts, configs, metadata, files)


@dataclass(frozen=True)
class _Set:
    """One of several sets of the same weights in a part's folder."""

    file: Path          # the weights, or the index of their shards
    variant: str
    kind: str           # safetensors or bin


def _parts(index: dict[str, Any], path: Path) -> dict[str, tuple[Path, bool]]:
    """Return part -> (its folder, whether it needs weights)."""
    parts = {}
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(x, str) for x in value)):
            continue                            # a setting, or a part that is left out: [null, null]
        if not re.fullmatch(r"\w+", name):
            raise DamagedCheckpointError(
                f"{path / MODEL_INDEX}: lists {name[:80]!r}, which is no folder in it; expected plain names"
            )
        parts[name] = (path / name, not WEIGHTLESS.fullmatch(value[1]))
    return parts


def _configs(folders: dict[str, tuple[Path, bool]], path: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for part, (folder, _) in folders.items():
        file = next((folder / name for name in CONFIGS if (folder / name).exists()), None)
        if file is not None:
            found[part] = _read_json(file, path)
    return found


def _part_alone(config: dict[str, Any], path: Path) -> str:
    """Return which part a folder is by itself: by its class, else by its name, else ""."""
    architectures = config.get("architectures")
    names = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else [])]
    parts = [part.name for name in names for part in TABLE if name in part.classes]
    name = path.resolve().name
    return parts[0] if parts else name if name in {part.name for part in TABLE if part.classes} else ""


def _sets(folder: Path) -> list[_Set]:
    sets = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        named = WEIGHTS.fullmatch(file.name) or INDEX.fullmatch(file.name)
        if named:
            groups = named.groupdict()
            variant = groups["variant"] or groups.get("late_variant") or ""
            sets.append(_Set(file, variant, groups["kind"]))
    return sets


def _check_variant(variant: str | None, sets: dict[str, list[_Set]], path: Path) -> None:
    there = sorted({choice.variant for choices in sets.values() for choice in choices if choice.variant})
    if variant is not None and variant not in there:
        raise CheckpointError(
            f"{path}: has no variant {variant!r}; there: {', '.join(there) or 'only one set of weights'}"
        )


def _choose(choices: list[_Set], variant: str | None, folder: Path) -> _Set:
    """Take the variant asked for, else full precision; .safetensors before .bin, one file before shards."""

    def rank(choice: _Set) -> tuple:
        known = [*FULL_PRECISION, choice.variant].index(choice.variant)
        is_index = choice.file.suffix == ".json"
        asked = variant is not None and choice.variant == variant
        return not asked, known, choice.variant, choice.kind != "safetensors", is_index, choice.file.name

    chosen = min(choices, key=rank)
    left = [choice.file.name for choice in choices if choice is not chosen]
    if left:
        logger.info("%s: taking %s, leaving %s", folder, chosen.file.name, ", ".join(left))
    elif chosen.variant:
        logger.info("%s: taking %s, the only weights there", folder, chosen.file.name)
    return chosen


def _read_set(file: Path, root: Path, read: Reader) -> "tuple[Tensors, dict[str, str], list[Path]]":
    """Return the tensors, metadata and files of one set."""
    if file.suffix == ".json":
        return _read_shards(file, root, read)
    tensors, metadata = _read_weights(file, root, read)
    return tensors, metadata, [file]


def _read_weights(file: Path, root: Path, read: Reader) -> "tuple[Tensors, dict[str, str]]":
    with reading(file):
        _check_inside(file, root)
        return read(file, sniff(file))


def _read_shards(index: Path, root: Path, read: Reader) -> "tuple[Tensors, dict[str, str], list[Path]]":
    """Read the shards that an index lists; each must hold exactly the tensors that the index gives it."""
    content = _read_json(index, root)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise DamagedCheckpointError(f"{index}: has no 'weight_map' of tensor to file; download it again")
    tensors: Tensors = {}
    metadata: dict[str, str] = {}
    shards = [index.parent / _plain_name(name, index) for name in sorted(set(weight_map.values()))]
    absent = [shard.name for shard in shards if not shard.exists()]
    if absent:
        raise DamagedCheckpointError(
            f"{index}: {len(absent)} of {len(shards)} shards are missing ({_some(absent)}); download them"
        )
    for shard in shards:
        held, said = _read_weights(shard, root, read)
        listed = {name for name, file in weight_map.items() if file == shard.name}
        for what, names in (("lacks", listed - held.keys()), ("has surplus", held.keys() - listed)):
            if names:
                raise DamagedCheckpointError(
                    f"{shard}: {what} {counted(len(names), 'tensor')} against {index.name} "
                    f"({_some(names)}); download both again"
                )
        tensors |= held
        metadata |= said
    _check_total(content.get("metadata"), tensors, index)
    return tensors, metadata, shards


def _check_total(metadata: Any, tensors: "Tensors", index: Path) -> None:
    """Warn of another total, no more: all names are there, and writers differ in how they count."""
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    held = sum(x.nbytes for x in tensors.values())
    if type(claimed) is int and claimed != held:
        logger.warning("%s claims %d bytes, its shards hold %d", index, claimed, held)


def _plain_name(name: str, index: Path) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise DamagedCheckpointError(
            f"{index}: lists {name[:80]!r}, which is no file in its folder; expected plain names"
        )
    return name


def _check_inside(file: Path, root: Path) -> None:
    """Refuse a link out of the folder, but for what a hub cache is made of: snapshots/X/* -> blobs/*."""
    home, target = root.resolve(), file.resolve()
    snapshot = next((place for place in (home, *home.parents) if place.parent.name == "snapshots"), None)
    homes = [home] if snapshot is None else [home, snapshot.parent.parent / "blobs"]
    if not any(target.is_relative_to(place) for place in homes):
        raise DamagedCheckpointError(
            f"{file}: is a link to {target}, outside {root}; put the file itself in its place"
        )


def _read_json(file: Path, root: Path) -> dict[str, Any]:
    with reading(file):
        _check_inside(file, root)
        if not file.is_file():
            raise DamagedCheckpointError(f"{file}: is not a regular file; expected JSON")
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DamagedCheckpointError(
                f"{file}: has {size} bytes; expected JSON of at most {MAX_JSON_BYTES}"
            )
        try:
            content = json.loads(file.read_bytes(), object_pairs_hook=without_repeats)
        except (ValueError, RecursionError) as error:
            reason = str(error).partition("\n")[0][:100]
            raise DamagedCheckpointError(f"{file}: is no valid JSON ({reason}); download it again") from error
        if not isinstance(content, dict):
            raise DamagedCheckpointError(f"{file}: holds a {type(content).__name__}; expected a JSON object")
        return content


def _no_weights(part: str, folder: Path, root: Path) -> CheckpointError:
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    shards = [name for name in names if SHARD.fullmatch(name)]
    if shards:
        return DamagedCheckpointError(
            f"{folder}: has shards ({_some(shards)}) but not their index.json; download it"
        )
    if folder != root:
        return DamagedCheckpointError(
            f"{root}: {MODEL_INDEX} lists {part}, but {folder.name}/ holds no weights "
            f"({STEMS[0]}.safetensors or the like); download it"
        )
    snapshots = sorted((root if root.name == "snapshots" else root / "snapshots").glob("*/"))
    if snapshots:
        return NotACheckpointError(f"{root}: is a folder of the hub's cache; give {_some(snapshots)}")
    files = [name for name in names if Path(name).suffix.lower() in SINGLE_FILES]
    if any(root.glob("*/config.json")):
        return DamagedCheckpointError(f"{root}: is a diffusers folder without {MODEL_INDEX}; download it")
    if how := model_of_run(root):
        return NotACheckpointError(f"{root}: is a folder of a training run, no model; {how}")
    if files:
        return NotACheckpointError(f"{root}: is a folder; give one of the files in it: {_some(files)}")
    return NotACheckpointError(
        f"{root}: is a folder without {MODEL_INDEX} and without weights; give a file or a diffusers folder"
    )


def _some(names: Iterable[str | Path]) -> str:
    names = [shown(str(name)) for name in sorted(names)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
