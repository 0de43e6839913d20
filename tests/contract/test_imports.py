"""Imports point one way, and starting is cheap."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each part may import of the others. Parts on one line do not import each other.
#   scripts -> cli -> jobs -> tasks, training -> networks -> samplers, adapters, backends -> models
#   -> diffusion -> torch
LAYERS = [
    ["scripts"],
    ["cli"],
    ["jobs"],
    ["tasks", "training"],
    ["networks"],
    ["samplers", "adapters", "backends"],
    ["models"],
    ["diffusion", "prompts"],
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
FOR_ALL = set(
    "clip_files config devices errors files import_finder ldm published_names signals util wording "
    "yaml_file".split()
)

# Beside the chain: what they may import, whatever the layer.
OTHERS = {
    "imaging": set(),
    "requests": {"samplers", "diffusion", "prompts"},
    "checkpoint": {"loading", "prompts"},
    "data": {"imaging", "checkpoint", "diffusion"},
    "loading": {"checkpoint", "models", "diffusion"},
    "annotators": {"checkpoint", "imaging", "loading", "models", "requests"},
    "reference_scripts": {"checkpoint", "imaging", "loading"},
}
# From where on the chain uses those: from the tasks upwards.
USED_FROM = dict.fromkeys(("annotators", "requests", "imaging", "checkpoint", "data", "loading"), "training")
USED_FROM["reference_scripts"] = "scripts"

# Samplers see only `denoise`.
NARROW = {"samplers": {"diffusion"}, "diffusion": set(), "prompts": set(), "imaging": set()}


def python_files() -> list[Path]:
    return sorted(path for folder in ("ldm", "scripts", "demo") for path in (ROOT / folder).rglob("*.py"))


def part_of(path: Path) -> str:
    """Return the part a file belongs to: `samplers` for ldm/samplers/ddim.py, `config` for ldm/config.py."""
    relative = path.relative_to(ROOT)
    if relative.parts[0] in ("scripts", "demo"):
        return "scripts"
    if relative.name == "__init__.py" and len(relative.parts) == 2:
        return "ldm"
    return relative.parts[1].removesuffix(".py")


@functools.cache
def imported_names(path: Path) -> set[str]:
    """Return what the file imports, as "package.name"; inside functions too, but not for type checkers."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("ldm", "scripts")}


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
        return importer == "ldm" and imported in ("loading", "jobs")
    if importer in OTHERS:
        return imported in OTHERS[importer]
    if imported in OTHERS:
        return LEVEL[importer] <= LEVEL[USED_FROM[imported]]
    return LEVEL[importer] < LEVEL[imported]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    importer = part_of(path)
    assert importer in LEVEL.keys() | OTHERS.keys() | FOR_ALL, "a new part needs its place in the chain"
    wrong = sorted({part for part in map(_part, imported_names(path)) if not allowed(importer, part)})
    assert wrong == [], f"{importer} must not import {', '.join(wrong)}"


def test_the_rule_can_refuse():
    assert not allowed("models", "samplers")
    assert not allowed("samplers", "models")
    assert not allowed("diffusion", "imaging")
    assert not allowed("config", "models")
    assert not allowed("tasks", "training")
    assert allowed("tasks", "samplers") and allowed("scripts", "cli") and allowed("training", "data")


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "ldm").rglob("*.py")
}


def module_of(name: str) -> str:
    """Return the module that an imported name is, or is in."""
    return name if name in MODULES else module_of(name.rpartition(".")[0])


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return modules of which each imports the next and the last the first; [] if there is no circle."""
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return trail[trail.index(module) :]
        if module in done:
            return []
        for imported in sorted(imports[module]):
            if found := visit(imported, [*trail, module]):
                return found
        done.add(module)
        return []

    return next((found for module in imports if (found := visit(module, []))), [])


def test_no_module_imports_itself_through_others():
    imports = {module: set(map(module_of, imported_names(path))) for module, path in MODULES.items()}
    assert circle(imports) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def loaded_modules(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(run.stdout.split())


CHEAP = ["ldm", "ldm.annotators", "ldm.config", "ldm.errors", "ldm.published_names", "ldm.util"]
CHEAP += sorted(f"ldm.cli.{path.stem}" for path in (ROOT / "ldm/cli").glob("*.py") if path.stem != "__init__")
CHEAP += sorted(f"ldm.annotators.{path.stem}" for path in (ROOT / "ldm/annotators").glob("[a-z]*.py"))


def test_the_cheap_modules_load_no_torch():
    """Help must be there in half a second; torch alone takes longer than that."""
    loaded = loaded_modules("import " + ", ".join(CHEAP))
    assert {"torch", "torchvision", "open_clip", "pytorch_lightning", "numpy"} & loaded == set()


OPTIONAL = set(
    "bitsandbytes clip compel cv2 diffusers gradio intel_extension_for_pytorch matplotlib openvino "
    "pytorch_lightning submitit transformers xformers".split()
)


@pytest.mark.slow
def test_making_images_loads_nothing_optional():
    loaded = loaded_modules("import ldm.loading, ldm.samplers, ldm.tasks.txt2img, ldm.tasks.img2img")
    assert OPTIONAL & loaded == set()


# Begin names that are never opened: of XML vocabularies, and the first line of a Git LFS pointer file.
NOT_ADDRESSES = ("http://www.w3.org/", "http://ns.adobe.com/", "https://git-lfs")


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
