"""Configurations: read a YAML file, merge overrides, check it, build what it describes.

A node is `{target: dotted.name, params: {...}}`. Reference targets go through `published_names.PUBLISHED`;
beyond those only classes of this project and `torch.nn.Identity` can be built, so that a YAML file from
the net is data and not a program. Building reports all faults at once, each with its path in the file.
"""

import hashlib
import importlib
import inspect
import json
import logging
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import BackendUnavailable, ConfigError, is_out_of_memory, nearest
from ldm.files.reading import no_file
from ldm.published_names import IGNORED_PARAMS, PUBLISHED
from ldm.wording import counted
from ldm.yaml_file import parse_yaml, read_yaml

if TYPE_CHECKING:
    from omegaconf import DictConfig

logger = logging.getLogger(__name__)

# Reference keys for what is not built; null or false, their reference default, asks for nothing.
NOT_BUILT = ("force_null_conditioning", "given_betas", "n_embed", "scale_by_std")

NONE_LITERALS = ("__is_first_stage__", "__is_unconditional__")
# Nodes that only training reads, where its own configuration says it: not built, a class that asks gets None.
TRAINING_NODES = ("lossconfig", "scheduler_config")
NODE_KEYS = ("target", "params", "base_learning_rate")
# May name a file next to the YAML; with its ending.
FILE_KEYS = {"arch": ".json", "bpe_path": "", "model": ".json"}
BUILDABLE_PACKAGES = ("ldm.models.", "ldm.training.", "ldm.data.", "ldm.adapters.")
# Of a checkout; see docs/DEMO_DATA.md.
DEMO_CLASSES = (
    "demo.scenes.EmojiScenes", "demo.discs.Discs", "demo.clip_training.ClipTraining",
    "demo.perceptual.PerceptualDistance",
)  # fmt: skip
IN_YAML_ALONE = {"tutorial_dataset.MyDataset": "ldm.data.pairs.PromptJson"}  # of ControlNet's tutorial
DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
PACKAGE = Path(__file__).resolve().parent
CONFIG_ROOTS = (PACKAGE.parent / "configs", PACKAGE / "configs")
# The YAML files of ControlNet 1.1 have a name for each ControlNet, and three contents.
CONTROLNET_1_1 = {
    r"control_v11\w+_sd15_shuffle\.yaml": "cldm_v15_avg_pool.yaml",
    r"control_v11\w+_sd15\w*\.yaml": "cldm_v15.yaml",
    r"control_v11\w+_sd21\w*\.yaml": "cldm_v21.yaml",
}


def find_config(path: str | Path) -> Path:
    """Return the file that `path` means: as given, else in the repository, else in the installed package.

    `configs/NAME` is found from any working directory; so is every other file that ships in configs/.
    `models/NAME` is how ControlNet's pages name its configurations.
    """
    given = Path(path).expanduser()
    places = [given]
    if not given.is_absolute():
        in_configs = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
        places += [root / in_configs for root in CONFIG_ROOTS]
        if given.parts[:1] == ("models",):
            places += [root / "controlnet" / _of_controlnet(given.name) for root in CONFIG_ROOTS]
    for place in places:
        if place.is_file():
            return place
    if given.exists():
        raise ConfigError(f"{path}: {no_file(given)}; expected a YAML file")
    shipped = [str(Path("configs") / name) for name in _shipped_configs()]
    raise ConfigError(f"{path}: there is no such file{nearest(str(path), shipped)}")


def _of_controlnet(name: str) -> str:
    """Return the name of the included file that says the same as one of ControlNet's."""
    return next((ours for pattern, ours in CONTROLNET_1_1.items() if re.fullmatch(pattern, name)), name)


def find_weights(path: str | Path) -> Path:
    """Return the file or folder that `path` means: as given, else `configs/NAME` that is included."""
    given = Path(path).expanduser()
    if given.exists() or given.parts[:1] != ("configs",):
        return given
    try:
        return find_config(given)
    except ConfigError:
        return given


def yaml_beside(weights: str | Path, by_name: bool = True) -> Path | None:
    """Return the configuration next to weights: NAME.yaml of NAME.safetensors, as training writes it.

    A YAML file that describes no model of this project does not count.

    Args:
        by_name: without it, also model.yaml and config.yaml, which a training run's folder has.
    """
    weights = Path(weights)
    names = [weights.with_suffix(".yaml").name, *(() if by_name else ("model.yaml", "config.yaml"))]
    for path in (weights.with_name(name) for name in names):
        if weights.is_file() and path.is_file() and _describes_a_model(path):
            return path
    return None


def _describes_a_model(path: Path) -> bool:
    try:
        find_class(read_config(path)["model"]["target"])
    except (ConfigError, KeyError, TypeError) as error:
        logger.debug("%s describes no model: %s", path, error)
        return False
    return True


def _shipped_configs() -> list[Path]:
    roots = [root for root in CONFIG_ROOTS if root.is_dir()]
    return sorted(file.relative_to(root) for root in roots for file in root.rglob("*.yaml"))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> "DictConfig":
    """Read a YAML file as `read_config` does; nodes are attributes, too: `load_config(path).model.params`."""
    from omegaconf import OmegaConf

    return OmegaConf.create(read_config(path, overrides))


def read_config(
    path: str | Path, overrides: Sequence[str] = (), sections: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """Read a YAML file and merge `overrides` ("model.params.image_size=96") over it.

    Where the class that takes a value expects text, the text of the override is taken as it is, and as YAML
    everywhere else. Files that stand next to the YAML become absolute paths.

    Args:
        sections: classes of the sections that are no nodes, whose annotations say the types.

    Raises:
        ConfigError: naming file and line, or the override.
    """
    file = find_config(path)
    content = read_yaml(file)
    for override in overrides:
        _merge_override(content, override, sections or {})
    return _with_files_in(file.absolute().parent, content)


def config_sha256(path: str | Path) -> str:
    """Return the SHA-256 of what a YAML file says; comments, layout and its folder do not count."""
    content = read_yaml(find_config(path))
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _merge_override(content: dict[str, Any], override: str, sections: Mapping[str, type]) -> None:
    """Set `a.b.c=value` in place. What it goes into must be there, so that a slip is not swallowed."""
    key, equals, text = override.partition("=")
    *above, last = key.strip().split(".")
    if not equals or not last:
        raise ConfigError(f"override {override!r}; expected KEY=VALUE such as model.params.image_size=96")
    parent: Any = content
    for part in above:
        parent = _existing(parent, part, override)
    if not above or isinstance(parent, list):
        _existing(parent, last, override)
    if not isinstance(parent, (dict, list)):
        raise ConfigError(f"override {override!r}: {'.'.join(above)} is {parent!r}, which holds no {last!r}")
    keys = [*above, last]
    value = _override_value(text, f"override {override!r}", lambda: _hint_at(content, keys, sections))
    parent[last if isinstance(parent, dict) else int(last)] = value


def _override_value(text: str, source: str, hint: Callable[[], Any]) -> Any:
    """Return the value that an override means; `hint` is asked only where text may be meant otherwise."""
    try:
        value = parse_yaml(text, source)
        if value == text:
            return value
    except ConfigError:
        if "${" in text or not _takes_text(hint()):
            raise
        return text
    expected = hint()
    if _takes_text(expected):
        others = [each for each in typing.get_args(expected) if each is not str]
        return value if any(_fits(value, each) for each in others) else text
    if str in typing.get_args(expected) and isinstance(value, (list, dict)):
        return parse_yaml(text, source, texts=True)
    return value


def _takes_text(hint: Any) -> bool:
    """Tell whether a hint is str, or one of several with str among them."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return hint is str or (is_union and str in typing.get_args(hint))


def _hint_at(content: Any, keys: list[str], sections: Mapping[str, type]) -> Any:
    """Return the annotation of what takes the value at this path, or Any."""
    hint: Any = Any
    node: Any = {}
    for i, key in enumerate(keys):
        if i == 1 and keys[0] in sections:
            hint = typing.get_type_hints(sections[keys[0]]).get(key, Any)
        elif "target" in node:
            try:
                hint = _hints(find_class(node["target"])).get(key, Any)
            except ConfigError:  # building it says so
                return Any
        else:
            arguments = typing.get_args(hint)
            hint = arguments[-1] if typing.get_origin(hint) in (list, dict) else Any
        node = content if key == "params" else {}
        content = content[int(key)] if isinstance(content, list) else (content or {}).get(key)
    return hint


def _existing(parent: Any, part: str, override: str) -> Any:
    if isinstance(parent, dict) and part in parent:
        return parent[part]
    if isinstance(parent, list) and part.isdecimal() and int(part) < len(parent):
        return parent[int(part)]
    known = parent if isinstance(parent, dict) else ()
    raise ConfigError(f"override {override!r}: there is no {part!r}{nearest(part, known)}")


def map_files(value: Any, change: Callable[[str, str], str]) -> Any:
    """Return `value` with `change(key, path)` in place of every path of FILE_KEYS."""
    if isinstance(value, list):
        return [map_files(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: change(key, item) if key in FILE_KEYS and isinstance(item, str) and item
        else map_files(item, change)
        for key, item in value.items()
    }  # fmt: skip


def _with_files_in(folder: Path, value: Any) -> Any:
    """Return `value` with the paths of FILE_KEYS in `folder` where the file lies there."""

    def found(key: str, path: str) -> str:
        file = folder / (path if path.endswith(FILE_KEYS[key]) else path + FILE_KEYS[key])
        return str(file) if file.is_file() else path

    return map_files(value, found)


def with_absolute_paths(value: Any, key: str = "") -> Any:
    """Return a configuration with absolute paths in place of those that are found from the working folder.

    Paths are what FILE_KEYS and keys that end with `path` or `ckpt` name.
    """
    if isinstance(value, dict):
        return {key: with_absolute_paths(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [with_absolute_paths(item) for item in value]
    if not (isinstance(value, str) and value and (key in FILE_KEYS or key.endswith(("path", "ckpt")))):
        return value
    found = find_weights(value + ("" if value.endswith(FILE_KEYS.get(key, "")) else FILE_KEYS[key]))
    return str(found.absolute()) if found.exists() else value


def instantiate(node: Any, path: str = "model") -> Any:
    """Build what `node` describes, nested nodes first; `node` itself is left as it is.

    Files that it names (`arch`, ...) are looked for in the working folder; `load_config` has looked next to
    the YAML before.

    Args:
        node: `{target, params}` as a mapping or DictConfig, or one of the two literals that mean None.
        path: where the node stands, for messages.

    Raises:
        ConfigError: listing every unknown target, unknown, missing or ill-typed parameter at once.
    """
    node = _with_files_in(Path(), plain(node))
    if isinstance(node, str) and node in NONE_LITERALS:
        return None
    if not isinstance(node, dict) or "target" not in node:
        got = f"keys {', '.join(map(str, node)) or 'none'}" if isinstance(node, dict) else repr(node)
        raise ConfigError(f"{path}: expected a node with 'target' and 'params', got {got}")
    faults = list(_faults(node, path))
    if faults:
        count = f"{counted(len(faults), 'fault')}: " if len(faults) > 1 else ""
        raise ConfigError(count + "; ".join(faults))
    return _build(node, path)


def plain(node: Any) -> Any:
    """Turn OmegaConf containers into dicts and lists."""
    if isinstance(node, (dict, str)) or node is None:
        return node
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "target" in value


def find_class(target: Any) -> type:
    """Return the class a target means; nothing outside the project is imported."""
    if not isinstance(target, str) or not DOTTED_NAME.fullmatch(target):
        raise ConfigError(f"target {target!r}; expected a dotted class name")
    if target == "torch.nn.Identity":
        from torch.nn import Identity

        return Identity
    dotted = IN_YAML_ALONE.get(target) or PUBLISHED.get(target, target)
    known = [*PUBLISHED, "torch.nn.Identity"]
    if target in DEMO_CLASSES and not (PACKAGE.parent / "demo" / "scenes.py").is_file():
        raise BackendUnavailable(f"target {target} is in a checkout only: clone the repository")
    if not dotted.startswith(BUILDABLE_PACKAGES) and target not in (*PUBLISHED, *DEMO_CLASSES):
        raise ConfigError(f"target {target} is not a class of this project{nearest(target, known)}")
    module, _, name = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}."):
            raise BackendUnavailable(f"{target} needs the package {error.name}; install it") from error
        raise ConfigError(f"target {target} is unknown{nearest(target, known)}") from error
    if not inspect.isclass(found) or not found.__module__.startswith(("ldm.", "demo.")):
        raise ConfigError(f"target {target} is not a class of this project")
    return found


def _faults(value: Any, path: str) -> Iterator[str]:
    """Yield what is wrong with every node at and below `value`."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _faults(item, f"{path}.{i}")
    elif _is_node(value):
        yield from _node_faults(value, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _faults(item, f"{path}.{key}")


def _node_faults(node: dict[str, Any], path: str) -> Iterator[str]:
    for key in node:
        if key not in NODE_KEYS:
            yield f"{path}.{key}: unknown key{nearest(key, NODE_KEYS)}"
    params = node.get("params")
    if params is not None and not isinstance(params, dict):
        yield f"{path}.params: expected a mapping, got {params!r}"
        return
    try:
        cls = find_class(node["target"])
    except ConfigError as error:
        yield f"{path}: {error}"
        for key, value in (params or {}).items():
            yield from _faults(value, f"{path}.params.{key}")
        return
    yield from _param_faults(cls, params or {}, f"{path}.params")


def _param_faults(cls: type, params: dict[str, Any], path: str) -> Iterator[str]:
    """Compare `params` with what the constructor takes."""
    accepted, takes_any = _parameters(cls)
    hints = _hints(cls)
    for key, value in params.items():
        if key in TRAINING_NODES or (key in NOT_BUILT and value in (None, False)):
            continue
        if key not in accepted and key not in IGNORED_PARAMS and not takes_any:
            yield f"{path}.{key}: {cls.__name__} has no such parameter{nearest(key, accepted)}"
        elif key in accepted and not _holds_nodes(value) and value not in NONE_LITERALS:
            default = accepted[key].default
            if not _fits(value, hints.get(key, Any)) and not (value is None and default is None):
                yield f"{path}.{key}: expected {_in_words(hints[key])}, got {value!r}"
        if key in accepted or takes_any:
            yield from _faults(value, f"{path}.{key}")
    for key, parameter in accepted.items():
        if parameter.default is inspect.Parameter.empty and key not in params:
            yield f"{path}.{key}: {cls.__name__} needs it and it is missing"


def _parameters(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the named parameters of the constructor, and whether it takes any others.

    A constructor with `**rest` hands the rest to the class above, so that one's parameters count too.
    """
    named: dict[str, inspect.Parameter] = {}
    takes_any = False
    for init in _constructors(cls):
        takes_any = False
        for parameter in list(inspect.signature(init).parameters.values())[1:]:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                takes_any = True
            elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
                named.setdefault(parameter.name, parameter)
        if not takes_any:
            break
    return named, takes_any


def _constructors(cls: type) -> list[Any]:
    """Return the class's own constructor and those above it, nearest first."""
    return [vars(base)["__init__"] for base in cls.__mro__ if base is not object and "__init__" in vars(base)]


def _hints(cls: type) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for init in reversed(_constructors(cls)):
        try:
            hints |= typing.get_type_hints(init)
        except (NameError, TypeError):      # names that exist for the type checker only
            continue
    return hints


def _holds_nodes(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return _is_node(value) or any(_holds_nodes(item) for item in items)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a YAML value can be what `hint` says; hints YAML cannot express are not checked."""
    if hint is None or hint is type(None):
        return value is None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    if hint in (str, Path):
        return isinstance(value, str)
    kind = origin or hint
    if kind in (dict, Mapping):
        return isinstance(value, dict)
    if kind in (list, tuple, Sequence, Iterable):
        item = arguments[0] if arguments else Any
        return isinstance(value, list) and all(_fits(v, item) for v in value)
    return True


def _in_words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_in_words(argument) for argument in arguments)
    if origin in (list, tuple, Sequence):
        return f"a list of {_in_words(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def _build(value: Any, path: str) -> Any:
    """Build nested nodes bottom-up."""
    if isinstance(value, str) and value in NONE_LITERALS:
        return None
    if isinstance(value, list):
        return [_build(item, f"{path}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if not _is_node(value):
        return {key: _build(item, f"{path}.{key}") for key, item in value.items()}
    cls = find_class(value["target"])
    accepted, takes_any = _parameters(cls)
    params = {}
    for key, item in (value.get("params") or {}).items():
        if key in TRAINING_NODES and key in accepted:
            params[key] = None
        elif key in accepted or takes_any:
            params[key] = _build(item, f"{path}.params.{key}")
        elif key in IGNORED_PARAMS:
            logger.debug("%s.params.%s=%r is ignored: %s", path, key, item, IGNORED_PARAMS[key])
    try:
        return cls(**params)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path}: {cls.__name__} cannot be built from these params: {reason}") from error
