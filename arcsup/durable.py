"""Files that survive a crash: all of the old, or all of the new."""

import os
from contextlib import suppress
from pathlib import Path


def write_durably(file: Path, content: str, mode: int) -> None:
    """Replace a file's content at once: a reader sees all of the old or all of the new.

    Raises OSError when the disk refuses; nothing is left beside it then.
    """
    temporary = file.with_name(f".{file.name}.arcsup")
    try:
        with temporary.open("w") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make durable which names a folder has. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
