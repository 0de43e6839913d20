"""Words of messages: counted nouns, and a script by the name under which the user started this one."""

by_command = False  # whether an installed command, sd-NAME, was started; `ldm.cli.console` sets it


def counted(count: int, noun: str) -> str:
    """Return "1 image", "2 images" or "no images"; of several words the last is the noun."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("ch") else "s")
    return f"1 {noun}" if count == 1 else f"{count:,} {plural}" if count else f"no {plural}"


def script(name: str) -> str:
    """Return how the user calls a script: sd-NAME, or scripts/NAME.py in a checkout."""
    return f"sd-{name}" if by_command else f"scripts/{name}.py"
