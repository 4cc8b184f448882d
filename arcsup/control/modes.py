"""The mode of a run, as requests ask for it."""

import re
from typing import Any

from arcsup.control.requests import take_object
from arcsup.errors import UsageError
from arcsup.model import MiB
from arcsup.plan.mode import Mode, Purpose
from arcsup.spec.codec import CONTROL, LONGEST_TEXT
from arcsup.spec.units import LARGEST_SIZE
from arcsup.unattended.store import Answers


def take_mode(body: dict[str, Any]) -> Mode:
    """Return the mode that a request's body asks for. Raises UsageError."""
    disable_gpu, safe = _take_flag(body, "disableGpu"), _take_flag(body, "safeMode")
    purpose = Purpose.SAFE if safe else Purpose.NORMAL
    # As in arcd, the guest tools come on top of what the safe mode does.
    if _take_flag(body, "preinstall"):
        purpose = Purpose.PREINSTALL
    if "install" not in body:
        return Mode(purpose, disable_gpu)
    if purpose is not Purpose.NORMAL:
        raise UsageError("'install' goes with neither 'preinstall' nor 'safeMode'")
    return _take_installation(take_object(body, "install"))


def _take_installation(install: dict[str, Any]) -> Mode:
    media, size, base = install.get("media"), install.get("sizeMiB"), install.get("base")
    if not isinstance(media, list) or not (media or base):
        raise UsageError("'install.media' must be a list of ISO images, the installer's first")
    for medium in [*media, *([] if base is None else [base])]:
        if not _is_absolute_path(medium):
            raise UsageError(
                "'install.media' and 'install.base' must be absolute paths, "
                f"got {str(medium)[:80]!r}"
            )
    # True is an int in Python, and no size.
    if type(size) is not int or not 0 < size <= LARGEST_SIZE:
        raise UsageError(f"'install.sizeMiB' must be 1 to {LARGEST_SIZE}")
    return Mode(Purpose.CREATE, media=tuple(media), disk_mib=MiB(size), base=base)


def take_answers(body: dict[str, Any]) -> Answers | None:
    """Return the answers for the installer that a request brings, if any. Raises UsageError."""
    install = take_object(body, "install")
    if "answers" not in install:
        return None
    answers = take_object(install, "answers")
    files, label = take_object(answers, "files"), answers.get("label", "")
    preseed = answers.get("preseed", "")
    texts = [label, preseed, *files.values()]
    if not all(isinstance(text, str) for text in texts) or not (files or preseed):
        raise UsageError("'install.answers' must be 'label' and 'files', or 'preseed', all texts")
    if files and not _LABEL.fullmatch(label):
        raise UsageError("'install.answers.label' must be 1 to 16 letters and digits")
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise UsageError(f"'install.answers.files': {name[:40]!r} is no plain file name")
    if preseed and not install.get("media"):
        raise UsageError("'install.answers.preseed' goes with an installer's ISO")
    return Answers(label, files, preseed)


def _is_absolute_path(value: object) -> bool:
    """Tell whether it is one that a VM's file could have, too."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        return False
    return value.startswith("/") and CONTROL.search(value) is None


_LABEL = re.compile("[A-Za-z0-9]{1,16}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")


def _take_flag(body: dict[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{key!r} must be true or false, not {type(value).__name__}")
    return value
