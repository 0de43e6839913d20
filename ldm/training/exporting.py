"""Write what was trained as users load it: model.safetensors, with LDM key names, and model.yaml."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import ldm
from ldm.config import map_files
from ldm.files.atomic import atomic_write
from ldm.yaml_file import to_yaml


def export_weights(path: Path, tensors: dict[str, Tensor], dtype: str, metadata: dict[str, Any]) -> None:
    """Write tensors under LDM key names; floating-point ones are cast to `dtype`, metadata to strings."""
    to = getattr(torch, dtype)
    cast = {
        key: x.detach().to("cpu", to if x.is_floating_point() else x.dtype).contiguous().clone()
        for key, x in tensors.items()
    }
    about = {"format": "pt", "made_with": f"ldm {ldm.__version__}, torch {torch.__version__}", "dtype": dtype}
    about |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    atomic_write(path, lambda temporary: save_file(cast, temporary, metadata=about))


def export_config(path: Path, model: dict[str, Any], heading: str) -> None:
    """Write the YAML that `ldm.load_model` takes with these weights, and the files that it names."""
    model = copy_files_beside(model, path.parent)
    text = f"# {heading}\n" + to_yaml({"model": model})
    atomic_write(path, lambda temporary: temporary.write_text(text))


def copy_files_beside(value: Any, folder: Path) -> Any:
    """Return `value` with the files of FILE_KEYS copied into `folder` and called by their names there."""

    def copied(_: str, path: str) -> str:
        if not Path(path).is_file():
            return path
        content, name = Path(path).read_bytes(), Path(path).name
        atomic_write(folder / name, lambda temporary: temporary.write_bytes(content))
        return name

    return map_files(value, copied)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import numpy
    import pytorch_lightning

    return {
        "ldm": ldm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pytorch_lightning.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "cuda": str(torch.version.cuda),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
