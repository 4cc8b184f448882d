"""The files that setup installs: beside this module once installed, else in the checkout."""

from pathlib import Path

FOLDERS = (Path(__file__).parent / "data", Path(__file__).parents[2])


def read_resource(name: str) -> str:
    """Return a file such as ``config/arcsup.yaml``, named as in the checkout."""
    return next(folder / name for folder in FOLDERS if (folder / name).is_file()).read_text()
