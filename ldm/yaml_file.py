"""Read a YAML file that a stranger may have written: data only, bounded, every refusal with its line.

Refused before anything is built: tags (`!!python/...`), anchors and aliases (which multiply), references and
resolvers (`${oc.env:HOME}` would show the user's secrets), repeated keys, deep nesting, large files.
`1e-4` is a number, as everybody who writes it means (plain YAML 1.1 reads a string).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from ldm.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_VALUES = 10_000             # SD's largest YAML has 150
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The safe loader, with 1e-4 a float, dates left as text, and repeated keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first_line: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first_line:
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
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: repeated values in full, and text that looks like a number in quotes."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(content: Any) -> str:
    """Return plain data as YAML that `read_yaml` reads back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read `path` as a mapping of plain dicts, lists and scalars.

    Raises:
        ConfigError: it is not a file, not YAML, not a mapping, or holds what this module refuses.
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


def parse_yaml(text: str, source: str, texts: bool = False) -> Any:
    """Parse one YAML document to plain data; `source` opens each error, followed by the line.

    Args:
        texts: every scalar is text, as it is written.
    """
    try:
        _check_events(text)
        return yaml.load(text, Loader=yaml.BaseLoader if texts else _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: is not YAML: {str(error).splitlines()[0]}") from error


def _check_events(text: str) -> None:
    """Refuse what must not be built, from the parser's flat event stream, at the first offending line."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        tag = getattr(event, "tag", None)
        problem = None
        if depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} levels deep"
        elif count > MAX_VALUES:
            problem = f"more than {MAX_VALUES} values; this is not a configuration"
        elif getattr(event, "anchor", None):
            problem = "anchors (&a) and aliases (*a) are not supported; write the value out"
        elif tag not in (None, "!") and tag not in PLAIN_TAGS:
            problem = f"tag {tag!r} is not allowed; a configuration holds plain values only"
        elif isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            problem = "references (${...}) are not supported; write the value out"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
