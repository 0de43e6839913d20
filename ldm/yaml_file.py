"""Read a YAML file that a stranger may have written: data only, bounded, every refusal with its line.

Refused before anything is built: tags (`!!python/...`), resolvers (`${oc.env:HOME}` would show the user's
secrets), repeated keys, aliases that multiply, deep nesting, large files. A plain reference `${a.b}` to
another value of the same file is written out here, so no resolver ever runs. `1e-4` is a number, as everybody
who writes it means (plain YAML 1.1 reads a string).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from ldm.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_NODES = 10_000              # with aliases and references written out; SD's largest YAML has 150
MAX_REFERENCED_TEXT = 100_000   # characters of one value that references are part of

REFERENCE = re.compile(r"\$\{\s*([A-Za-z_]\w*(?:\.\w+)*)\s*\}")
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The safe loader, with 1e-4 a float, dates left as text, and repeated keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first_line: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first_line and key != "<<":
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} stands here and in line {first_line[key]}; keep one",
                    problem_mark=key_node.start_mark,
                )
            first_line[key] = line
        mapping = super().construct_mapping(node, deep)
        if not all(isinstance(key, (str, int, float)) for key in mapping):
            raise yaml.constructor.ConstructorError(
                problem="a key that is neither text nor a number", problem_mark=node.start_mark
            )
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read `path` as a mapping of plain dicts, lists and scalars; references are left in place.

    Raises:
        ConfigError: it is not a file, not YAML, not a mapping, or asks for what this module refuses.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: {size} bytes is too large for a configuration; at most {MAX_BYTES}")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; give a YAML file (weights go to --ckpt)") from error
    content = parse_yaml(text, str(path))
    if content is None:
        raise ConfigError(f"{path}: is empty; expected 'model:' with target and params")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; expected a mapping with 'model:'")
    return content


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document to plain data; `source` opens each error, followed by the line."""
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: is not YAML: {str(error).splitlines()[0]}") from error


def _check_events(text: str) -> None:
    """Refuse what must not be built, from the parser's flat event stream, at the first offending line."""
    sizes: dict[str, int] = {}              # anchor -> nodes under it, aliases written out
    open_anchors: list[str | None] = []
    counts = [0]                            # nodes so far, one entry an open collection
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            _check_tag(event)
            open_anchors.append(event.anchor)
            counts.append(1)
            if len(open_anchors) > MAX_DEPTH:
                _refuse(event, f"nested more than {MAX_DEPTH} deep")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            anchor, nodes = open_anchors.pop(), counts.pop()
            counts[-1] += nodes
            if anchor:
                sizes[anchor] = nodes
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                _refuse(event, f"alias *{event.anchor} is not defined above, or contains itself")
            counts[-1] += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            _check_tag(event)
            _check_references(event)
            counts[-1] += 1
            if event.anchor:
                sizes[event.anchor] = 1
        if sum(counts) > MAX_NODES:
            _refuse(event, f"more than {MAX_NODES} values, aliases written out; this is not a configuration")


def _check_tag(event: yaml.NodeEvent) -> None:
    if event.tag is not None and event.tag != "!" and event.tag not in PLAIN_TAGS:
        _refuse(event, f"tag {event.tag!r} is not allowed; a configuration holds plain values only")


def _check_references(event: yaml.ScalarEvent) -> None:
    rest = REFERENCE.sub("", event.value)
    if "${" in rest:
        _refuse(event, "only references such as ${a.b} to values of this file are allowed, no resolvers")


def _refuse(event: yaml.Event, problem: str) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def write_out_references(content: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a copy of `content` with each `${a.b}` replaced by what stands at a.b.

    A value that is one reference takes the other's type; inside a longer text its text is put in.

    Raises:
        ConfigError: a reference to nothing, in a circle, or growing beyond the limits.
    """
    budget = _Budget(source)

    def look_up(name: str, pending: tuple[str, ...]) -> Any:
        if name in pending:
            raise ConfigError(f"{source}: references go in a circle: {' -> '.join([*pending, name])}")
        value: Any = content
        for part in name.split("."):
            value = child(value, part)
            if value is NOTHING:
                raise ConfigError(f"{source}: ${{{name}}} refers to nothing; there is no {part!r}")
        return written_out(value, (*pending, name))

    def written_out(value: Any, pending: tuple[str, ...]) -> Any:
        budget.count_node()
        if isinstance(value, dict):
            return {key: written_out(item, pending) for key, item in value.items()}
        if isinstance(value, list):
            return [written_out(item, pending) for item in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = REFERENCE.fullmatch(value)
        if whole:
            return look_up(whole[1], pending)
        return budget.checked(REFERENCE.sub(lambda match: str(look_up(match[1], pending)), value))

    return written_out(content, ())


NOTHING = object()              # a missing child, because None is a value


def child(value: Any, part: str) -> Any:
    """Return item `part` of a mapping or list, or NOTHING."""
    if isinstance(value, dict):
        return value.get(part, NOTHING)
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return NOTHING


class _Budget:
    """Bounds what references may grow to."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.nodes = 0

    def count_node(self) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise ConfigError(f"{self.source}: references multiply beyond {MAX_NODES} values")

    def checked(self, text: str) -> str:
        if len(text) > MAX_REFERENCED_TEXT:
            raise ConfigError(f"{self.source}: references multiply beyond {MAX_REFERENCED_TEXT} characters")
        return text
