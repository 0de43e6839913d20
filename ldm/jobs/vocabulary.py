"""Name the words of a prompt that a model of few concepts does not know.

The YAML of such a model refers to a list of what it was trained on (`knows: FILE`, next to the YAML).
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ldm.errors import ConfigError

NAMED, EXAMPLES = 4, 6


def advice(prompts: Iterable[str], knows: Path) -> str | None:
    """Return a sentence about the words that a model does not know; None if there are none, or no list.

    Args:
        knows: JSON file with `words`, the files `concepts` and `best` of one name per line, and a `hint`.

    Raises: ConfigError: the file cannot be read, or lacks an entry.
    """
    if not knows.is_file():  # the model was copied without it
        return None
    try:
        node = json.loads(knows.read_text("utf-8"))
        concepts, best = (_names(knows.parent / node[name]) for name in ("concepts", "best"))
        known, hint = _words(" ".join((node["words"], *concepts, *best))), node["hint"]
    except FileNotFoundError:       # it was copied without the lists that it names
        return None
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{knows}: cannot be read as a list of what a model knows: {error}") from error
    texts = dict.fromkeys(prompts)
    unknown = [word for word in _words(" ".join(texts)) if not _forms(word) & known.keys()]
    if not unknown:
        return None
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return (
        f"this small model does not know {', '.join(map(repr, unknown[:NAMED]))}{more}; it draws best: "
        f"{', '.join(best[:: max(1, len(best) // EXAMPLES)][:EXAMPLES])} (all {len(best)}: "
        f"{knows.parent / node['best']}); {hint}"
    )


def _names(file: Path) -> list[str]:
    lines = file.read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _words(text: str) -> dict[str, None]:
    """Return the words of a text, each once and in order; numbers and a genitive's s do not count."""
    words = re.findall(r"[^\W_]+", re.sub(r"['\u2019]s\b", "", text.lower()))
    return dict.fromkeys(word for word in words if not word.isdigit())


def _forms(word: str) -> set[str]:
    """Return a word and what it may be the plural of."""
    return {word, word.removesuffix("s"), word.removesuffix("es")}
