"""Whether root may run a program, or follow a link, that somebody left in the file system."""

import os
import stat
from pathlib import Path


def find_distrust(path: Path) -> str:
    """Say why root must not run or believe a file; "" when only root can have written it.

    The folders above count too: whoever can write one of them can put another file there.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
        for each in (real, *real.parents):
            if why := judge(each, each.stat()):
                return why
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def judge(path: Path, status: os.stat_result) -> str:
    """Say who else than root could have made what is there; "" when nobody could."""
    if status.st_uid != 0:
        return f"refused: {path} does not belong to root"
    # In a sticky folder nobody can move what is root's.
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if not sticky and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"refused: {path} can be written by others than root"
    return ""
