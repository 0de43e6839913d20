"""The documentation: its commands parse and run, its lines are short, and what it names is there.

The commands of the gallery, and of blocks marked `<!-- runs -->`, run one after another, as a reader would
type them, in a folder that looks like a clone; with few steps, because what they draw is not judged here.
"""

import ast
import logging
import re
import shlex
from pathlib import Path

import pytest
from script_files import REPOSITORY as ROOT
from script_files import run_script

from ldm.cli import app
from ldm.cli.reference_flags import folded
from ldm.requests import NAMES, build, find

README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "configs/demo/MODEL_CARD.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>runs|gallery)(?:: (?P<name>\w+))? -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```",
    re.DOTALL,
)
STEPS = ["--steps", "2"]
GALLERY_BYTES = 1_500_000
# words that the glossary has better ones for
AVOIDED = re.compile(
    r"\b(pictures?|anew|demonstration models?|averaged copy|published (scripts?|values?))\b", re.IGNORECASE
)


def blocks(path: Path, language: str) -> list[re.Match[str]]:
    """Return the fenced blocks of a language."""
    return [block for block in BLOCK.finditer(path.read_text()) if block["language"] == language]


def commands(code: str) -> list[list[str]]:
    """Split a shell block into commands of Python, (file, arguments), without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    found = [words for line in lines if (words := shlex.split(line, comments=True))]
    assert all(words[0] == "python" and (ROOT / words[1]).is_file() for words in found), found
    return [words[1:] for words in found]


COMMANDS = [
    command for path in PAGES for block in blocks(path, "bash") for command in commands(block["code"])
]
TO_RUN = [command for block in blocks(README, "bash") if block["mark"] for command in commands(block["code"])]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with the configurations and the documentation, as in a clone."""
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    logger = logging.getLogger("ldm")
    before = logger.handlers, logger.propagate, logger.level
    yield tmp_path
    logger.handlers, logger.propagate, level = before
    logger.setLevel(level)


@pytest.mark.parametrize("command", COMMANDS, ids=shlex.join)
def test_the_script_takes_these_options(command: list[str], monkeypatch: pytest.MonkeyPatch):
    task, parsed = Path(command[0]).stem, []

    def parse_only(parser, main, argv=None) -> int:
        given = vars(parser.parse_args(argv))
        parsed.append(task)
        if task in NAMES:
            build(find(task), folded(find(task), given))
        if str(given.get("config")).startswith("configs/"):
            assert (ROOT / given["config"]).is_file()
        return 0

    monkeypatch.setattr(app, "exit_code", parse_only)
    assert run_script(f"../{command[0]}", *command[1:]) == 0
    assert parsed, "another parser would also run what the command says, and fetch what it fetches"


@pytest.mark.slow
def test_the_commands_run(clone: Path, capsys: pytest.CaptureFixture):
    assert {Path(command[0]).stem for command in TO_RUN} >= {*NAMES, "identify", "convert", "merge", "rerun"}
    for script, *arguments in TO_RUN:
        task = Path(script).stem
        arguments += STEPS if task in NAMES else []
        code = run_script(f"../{script}", *arguments)
        assert code == 0, f"{shlex.join([script, *arguments])}\n{capsys.readouterr().err}"
    made = {path.parts[-3] for path in clone.glob("outputs/*/samples/*.png")}
    assert made == {f"{task}-samples" for task in NAMES} | {"rerun"}


@pytest.mark.parametrize("block", [b for b in blocks(README, "python") if b["mark"]], ids=["library"])
def test_the_python_block_runs(block: re.Match[str], clone: Path):
    code = block["code"].replace("steps=15", "steps=2")
    assert code != block["code"]
    exec(compile(code, "README.md", "exec"), {})
    assert list(clone.glob("*.png")), "it made an image"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_import_what_is_there(path: Path):
    for block in blocks(path, "python"):
        nodes = ast.parse(block["code"]).body
        imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), path.name, "exec"), {})


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_lines_are_under_100_columns_in_the_words_of_the_glossary(path: Path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        assert len(line) < 100, f"{path.name}:{number} has {len(line)} columns"
        assert not (found := AVOIDED.search(line)), f"{path.name}:{number}: {found[0]}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_is_linked_and_named_is_there(path: Path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:")):
            assert (path.parent / target).exists(), target
    folders = "ldm|scripts|demo|configs|tests|docs|benchmarks|requirements"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", text):
        if name != "ldm/adapters/" and "NAME" not in name:  # the place of what is to come; a placeholder
            assert (ROOT / name).exists(), name


def test_the_gallery_has_a_row_for_every_task_with_a_prompt_or_an_image():
    rows = {block["name"]: block for block in blocks(README, "bash") if block["mark"] == "gallery"}
    assert set(rows) == set(NAMES) - {"sample"}
    for task, block in rows.items():
        assert [Path(command[0]).stem for command in commands(block["code"])] == [task]
    images = list((ROOT / "docs/images/gallery").iterdir())
    assert {path.stem for path in images} >= set(rows)
    assert sum(path.stat().st_size for path in images) < GALLERY_BYTES
