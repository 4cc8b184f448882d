"""Files that survive a crash: all of the old, or all of the new."""

import os
from pathlib import Path


def write_durably(file: Path, content: str, mode: int) -> None:
    """Replace a file's content at once: a reader sees all of the old or all of the new."""
    temporary = file.with_name(f".{file.name}.arcsup")
    with temporary.open("w") as stream:
        stream.write(content)
        stream.flush()
        os.fchmod(stream.fileno(), mode)
        os.fsync(stream.fileno())
    temporary.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
