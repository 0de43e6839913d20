"""Find the data files that the installed open_clip brings: CLIP's merges and the sizes of its architectures.

They are read as files. Importing open_clip would import transformers, timm and torchvision with it, which
takes as long as importing torch.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from ldm.errors import BackendUnavailable, ConfigError, nearest

MERGES = "bpe_simple_vocab_16e6.txt.gz"


def merges_file() -> Path:
    """Return the path of the merges that CLIP's tokenizer was published with."""
    return _folder() / MERGES


def architecture(arch: str) -> dict[str, Any]:
    """Return open_clip's description of `arch`: a known name, or the path of a JSON file.

    Raises:
        ConfigError: neither.
    """
    if arch.endswith(".json"):
        try:
            return json.loads(Path(arch).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"architecture file {arch}: {error}") from error
    known = {file.stem: file for file in (_folder() / "model_configs").glob("*.json")}
    if arch not in known:
        raise ConfigError(
            f"arch {arch!r} is not known to open_clip, and there is no {arch}.json next to the configuration or "
            f"in the working folder{nearest(arch, known)}"
        )
    return json.loads(known[arch].read_text(encoding="utf-8"))


@cache
def _folder() -> Path:
    """Return the folder of the installed open_clip; finding a top-level package does not import it."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise BackendUnavailable("no open_clip, whose files CLIP needs: pip install open-clip-torch")
    return Path(next(iter(spec.submodule_search_locations)))
