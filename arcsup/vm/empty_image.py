"""New qcow2 images without content, made in memory: nobody's file is opened for them."""

import os
from collections.abc import Callable
from io import BytesIO

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.model import Argv
from arcsup.vm.chains import read_base_name
from arcsup.vm.image_tool import run_image_tool
from arcsup.vm.programs import last_words

SECONDS_TO_CREATE = 30.0
"""An empty image is made in memory: its header and tables."""

LARGEST_EMPTY_IMAGE = 64 * 2**20
"""Bytes of an empty qcow2 image; one of 64 TiB has some MiB of tables."""


async def make_empty_image(
    command: Callable[[str], Argv], what: str, account: Account | None
) -> bytes:
    """Return an empty qcow2 image, as qemu-img makes it for ``account``; ``what`` is it in errors.

    It is given no file of the host's, by name or otherwise. Who else is ``account`` can write into
    its memory: what comes of it is judged before it is an image of root's.
    ``command`` is what makes it at a path. Raises Terminal, Transient.
    """
    memory = os.memfd_create("image", os.MFD_CLOEXEC)
    try:
        if account is not None:
            os.fchown(memory, account.uid, account.gid)
        _, *arguments = asked = command(f"/proc/self/fd/{memory}")
        finished = await run_image_tool(
            arguments,
            account=account,
            pass_fds=(memory,),
            seconds=SECONDS_TO_CREATE,
            largest=LARGEST_EMPTY_IMAGE,
        )
        if finished.returncode != 0:
            raise Terminal(
                f"{what}: cannot be made: {last_words(finished.stderr)}",
                hint="check the space and the owner of its folder",
            )
        image = os.pread(memory, LARGEST_EMPTY_IMAGE + 1, 0)
    finally:
        os.close(memory)
    base = asked[asked.index("-b") + 1] if "-b" in asked else None
    if len(image) > LARGEST_EMPTY_IMAGE or read_base_name(what, BytesIO(image)) != base:
        raise Terminal(
            f"{what}: is not as it was asked for: a process of QEMU's user has changed it",
            "look for programs of that user that belong to no VM",
        )
    return image
