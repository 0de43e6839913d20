"""The prompt syntaxes by name."""

import math
import re

from ldm.errors import InputError
from ldm.prompts import a1111, compel, plain
from ldm.prompts.fragments import Prompt, preview

SYNTAXES = {"plain": plain.parse, "a1111": a1111.parse, "compel": compel.parse}
# Ratios, times and verses, "(16:9)", are no weights: those are at most 3 and follow a word, or have a point.
WEIGHTED = r"\((?=[^()]*[^\W\d_])[^()]*(?:[^()\d]:\s*-?[0-3]|:\s*-?(?:[0-2]?\.\d+|3\.0+))\s*\)"
# Names such as "C++" are no weights: a word has several letters, or one that is not Latin.
MARKED = r"(?:[^\W\d_](?<!\b[A-Za-z])|[)\"])(?:\+\+|--)(?=\W|$)|\)(?:\+|-)(?=[\s,.;:)]|$)"
UNREAD = (  # (text with a meaning in another tool, the syntaxes that take it literally, what to do)
    (r"<(lora|lyco|hypernet):[^<>]*>", SYNTAXES, "LoRAs and hypernetworks cannot be applied yet"),
    (
        WEIGHTED + r"|\(\([^()]+\)\)|\bBREAK\b", ("plain",),
        "--prompt-syntax a1111 reads it as a weight or a break",
    ),
    (r"\[[^\[\]]*(?:\|[^\[\]]*|:\s*\d*\.?\d+\s*)\]", SYNTAXES, "a prompt cannot change from step to step"),
    (r"(?<=\S )AND(?= \S)", SYNTAXES, "it does not combine prompts here"),
    (
        MARKED + r"|\)\d?\.\d|\)\.(and|blend)\(", ("plain",),
        "--prompt-syntax compel reads it",
    ),
)  # fmt: skip
TEMPLATE = re.compile(r"(?<!\\)\{[^{}]*\|[^{}]*\}|(?<!\w)__[^\s_{}|][^{}|]*?__(?!\w)")


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


def advice(text: str, syntax: str, expands: bool = False) -> str | None:
    """Return a sentence on a part of a prompt that is taken literally although other tools read it.

    Args:
        expands: alternatives and wildcards (`ldm.prompts.combinations`) are expanded.
    """
    for pattern, syntaxes, what_to_do in UNREAD:
        if syntax in syntaxes and (found := re.search(pattern, text)):
            return f"{preview(found[0])} in a prompt is plain text: {what_to_do}"
    if not expands and (found := TEMPLATE.search(text)):
        return f"{preview(found[0])} in a prompt is plain text: --combinations all, or random N, expands it"
    return None
