"""Folders that a VM's programs could write to are removed, whatever these left there."""

import os
from pathlib import Path

from arcsup.errors import Transient
from arcsup.vm.programs import last_words, run_program

_SECONDS = 120.0
"""Seconds that a removal may take: a million names take ten."""


async def remove_trees(*folders: Path) -> None:
    """Remove folders and all that is below them; nothing happens when they are gone already.

    shutil.rmtree goes down by recursion, or with a descriptor for each level: a program that makes
    folders in folders keeps it from its end. rm does neither, and follows no links.

    Raises Transient, when something stays; Terminal, when there is no rm.
    """
    there = [str(folder) for folder in folders if os.path.lexists(folder)]
    if not there:
        return
    done = await run_program(
        ("rm", "--recursive", "--force", "--one-file-system", "--", *there), seconds=_SECONDS
    )
    if done.returncode:
        raise Transient(f"{' or '.join(there)} cannot be removed: {last_words(done.stderr)}")
