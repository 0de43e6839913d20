"""The prompt syntaxes by name."""

import math

from ldm.errors import InputError
from ldm.prompts import a1111, compel, plain
from ldm.prompts.fragments import Prompt, preview

SYNTAXES = {"plain": plain.parse, "a1111": a1111.parse, "compel": compel.parse}


def parse(text: str, syntax: str) -> Prompt:
    """Parse a prompt in the given syntax.

    Raises: InputError for an unknown syntax, a syntax error, or an infinite weight.
    """
    if syntax not in SYNTAXES:
        raise InputError(f"prompt syntax {syntax!r}; expected one of {', '.join(SYNTAXES)}")
    prompt = SYNTAXES[syntax](text)
    for fragment in prompt.fragments():
        if not math.isfinite(fragment.weight):
            raise InputError(f"prompt {preview(text)}: the weight of {preview(fragment.text)} is infinite")
    return prompt
