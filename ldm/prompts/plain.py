"""No syntax: every sign is text, as in the published scripts."""

from ldm.prompts.fragments import Fragment, Prompt, merged


def parse(text: str) -> Prompt:
    """Return the text as one fragment."""
    return Prompt(((merged([Fragment(text)]),),))
