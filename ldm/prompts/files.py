"""Text files with one prompt or value per line."""


def lines_of(data: bytes) -> list[bytes]:
    """Return the lines of a file. They end with \\n, \\r\\n or \\r; a byte order mark belongs to none."""
    return data.removeprefix(b"\xef\xbb\xbf").splitlines()
