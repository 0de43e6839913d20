"""Words of messages: counted nouns, and a script by the name under which the user started this one."""

by_command = False  # whether an installed command, sd-NAME, was started; `ldm.cli.console` sets it


def counted(count: int, noun: str) -> str:
    """Return "1 image" or "2 images"; of several words the last is the noun."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def script(name: str) -> str:
    """Return how the user calls a script: sd-NAME, or scripts/NAME.py in a checkout."""
    return f"sd-{name}" if by_command else f"scripts/{name}.py"
