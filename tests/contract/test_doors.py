"""The command line stays in ldm/cli: nothing behind it knows of argparse or of a Namespace."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = [path for path in sorted((ROOT / "ldm").rglob("*.py")) if "cli" not in path.relative_to(ROOT).parts]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def names(path: Path) -> set[str]:
    """Return all names, attributes and imported modules of a file; those in quoted annotations too."""
    found: set[str] = set()
    trees = [ast.parse(path.read_text())]
    while trees:
        for node in ast.walk(trees.pop()):
            if isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                found |= {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            elif isinstance(node, (ast.arg, ast.AnnAssign)) and isinstance(node.annotation, ast.Constant):
                trees.append(ast.parse(str(node.annotation.value)))
    return found


@pytest.mark.parametrize("path", [*LIBRARY, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_argparse_and_its_namespace_are_known_to_the_command_line_alone(path):
    assert not {"argparse", "Namespace", "ArgumentParser"} & names(path)


def test_the_rule_can_refuse(tmp_path):
    for text in ("import argparse", "from argparse import Namespace", "def f(args: 'x.Namespace'): ..."):
        (tmp_path / "wrong.py").write_text(text)
        assert {"argparse", "Namespace"} & names(tmp_path / "wrong.py")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_its_description_and_one_call(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
