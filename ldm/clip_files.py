"""Find the data files of the installed open_clip package: CLIP's merges and the sizes of its architectures.

Only the files are read. Importing open_clip would also import transformers, timm and torchvision, which takes
as long as importing torch.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from ldm.errors import BackendUnavailable, ConfigError, nearest

VIT_L_14 = {  # OpenAI's text tower, of SD 1.x, by the names of transformers
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
MERGES = "bpe_simple_vocab_16e6.txt.gz"


def merges_file() -> Path:
    """Return the path of the merges of CLIP's tokenizer."""
    return _folder() / MERGES


def architecture(arch: str) -> dict[str, Any]:
    """Return open_clip's description of an architecture.

    Args:
        arch: a name that open_clip knows, or the path of a JSON file.

    Raises:
        ConfigError: it is neither.
    """
    if arch.endswith(".json"):
        try:
            return json.loads(Path(arch).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"architecture file {arch}: {error}") from error
    known = {file.stem: file for file in (_folder() / "model_configs").glob("*.json")}
    if arch not in known:
        raise ConfigError(
            f"arch {arch!r} is not known to open_clip, and there is no {arch}.json next to the "
            f"configuration or in the working folder{nearest(arch, known)}"
        )
    return json.loads(known[arch].read_text(encoding="utf-8"))


@cache
def _folder() -> Path:
    """Return the folder of the installed open_clip; finding a top-level package does not import it."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise BackendUnavailable("CLIP needs the files of open_clip: pip install open-clip-torch")
    return Path(next(iter(spec.submodule_search_locations)))
