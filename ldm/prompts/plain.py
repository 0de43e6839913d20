"""No syntax: every character is text, as in the reference scripts."""

from ldm.prompts.fragments import Fragment, Prompt, merged


def parse(text: str) -> Prompt:
    """Return the text as one fragment."""
    return Prompt(((merged([Fragment(text)]),),))
