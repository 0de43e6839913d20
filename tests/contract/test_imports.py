"""Imports point one way, and starting is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each part may import of the others. Parts on one line do not import each other.
#   scripts -> cli -> jobs, tasks, training -> samplers, adapters, backends -> models -> diffusion -> torch
LAYERS = [
    ["scripts"],
    ["cli"],
    ["jobs", "tasks", "training"],
    ["samplers", "adapters", "backends"],
    ["models"],
    ["diffusion", "prompts"],
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
FOR_ALL = {"config", "errors", "published_names", "yaml_file", "clip_files", "util", "ldm"}

# Beside the chain: what they may import, whatever the layer.
OTHERS = {
    "imaging": set(),
    "checkpoint": {"backends", "prompts"},
    "data": {"imaging", "checkpoint", "diffusion"},
    "loading": {"checkpoint", "backends", "models", "diffusion"},
}
# What the chain may import of those: pictures, files, data and loading are used from the tasks upwards.
USED_FROM = {"imaging": "training", "checkpoint": "training", "data": "training", "loading": "training"}

# Samplers see only `denoise`.
NARROW = {"samplers": {"diffusion"}, "diffusion": set(), "prompts": set(), "imaging": set()}


def python_files() -> list[Path]:
    return sorted([*(ROOT / "ldm").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])


def part_of(path: Path) -> str:
    """Return the part a file belongs to: `samplers` for ldm/samplers/ddim.py, `config` for ldm/config.py."""
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "scripts":
        return "scripts"
    if relative.name == "__init__.py" and len(relative.parts) == 2:
        return "ldm"
    return relative.parts[1].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Return the parts that the file imports, inside functions too, but not those for type checkers."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    modules = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "ldm"
                else {node.module}
            )
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import; write the full name")
    return {_part(name) for name in modules if name.split(".")[0] in ("ldm", "scripts")}


def _part(module: str) -> str:
    first, _, rest = module.partition(".")
    if first == "scripts":
        return "scripts"
    part = rest.partition(".")[0] or "ldm"
    return part if (ROOT / "ldm" / part).exists() or (ROOT / f"ldm/{part}.py").exists() else "ldm"


def allowed(importer: str, imported: str) -> bool:
    if imported == importer or imported in FOR_ALL:
        return True
    if importer in NARROW:
        return imported in NARROW[importer]
    if importer in FOR_ALL:  # `ldm` hands out load_model; config and errors stand alone
        return importer == "ldm" and imported == "loading"
    if importer in OTHERS:
        return imported in OTHERS[importer]
    if imported in OTHERS:
        return LEVEL[importer] <= LEVEL[USED_FROM[imported]]
    return LEVEL[importer] < LEVEL[imported]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    importer = part_of(path)
    assert importer in LEVEL.keys() | OTHERS.keys() | FOR_ALL, "a new part needs its place in the chain"
    wrong = sorted(part for part in imported_parts(path) if not allowed(importer, part))
    assert wrong == [], f"{importer} must not import {', '.join(wrong)}"


def test_the_rule_can_refuse():
    assert not allowed("models", "samplers")
    assert not allowed("samplers", "models")
    assert not allowed("diffusion", "imaging")
    assert not allowed("config", "models")
    assert not allowed("tasks", "training")
    assert allowed("tasks", "samplers") and allowed("scripts", "cli") and allowed("training", "data")


def loaded_modules(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(run.stdout.split())


CHEAP = ["ldm", "ldm.config", "ldm.errors", "ldm.published_names", "ldm.util"]
CHEAP += sorted(f"ldm.cli.{path.stem}" for path in (ROOT / "ldm/cli").glob("*.py") if path.stem != "__init__")


def test_the_cheap_modules_load_no_torch():
    """Help must be there in half a second; torch alone takes longer than that."""
    loaded = loaded_modules("import " + ", ".join(CHEAP))
    assert {"torch", "torchvision", "open_clip", "pytorch_lightning", "numpy"} & loaded == set()


OPTIONAL = set(
    "bitsandbytes clip compel cv2 diffusers gradio intel_extension_for_pytorch matplotlib openvino "
    "pytorch_lightning submitit transformers xformers".split()
)


@pytest.mark.slow
def test_making_pictures_loads_nothing_optional():
    loaded = loaded_modules("import ldm.loading, ldm.samplers, ldm.tasks.txt2img, ldm.tasks.img2img")
    assert OPTIONAL & loaded == set()


# Begin names that are never opened: of XML vocabularies, and the first line of a Git LFS pointer file.
NOT_ADDRESSES = ("http://www.w3.org/", "https://git-lfs")


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_names_a_network_address(path: Path):
    """Nothing is fetched at run time; papers are cited by their arXiv number."""
    text = path.read_text()
    for name in NOT_ADDRESSES:
        text = text.replace(name, "")
    for scheme in ("http://", "https://", "ftp://", "s3://"):
        assert scheme not in text
    tree = ast.parse(text)
    fetching = {"requests", "urllib.request", "huggingface_hub", "httpx", "aiohttp", "wandb"}
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert not {name for name in imports if name in fetching or name.split(".")[0] in fetching}
