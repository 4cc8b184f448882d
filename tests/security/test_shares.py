"""What a guest's root leaves in a share belongs to the host's root: nobody else may reach it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.model import Share, Vm
from arcsup.vm.belongings import check_shares
from arcsup.vm.managed import Workshop
from arcsup.vm.sockets import Listener
from tests.security.other_user import LOCAL_USER, act_as, needs_root
from tests.small_host import SmallHost
from tests.vm_samples import make_vm

pytestmark = needs_root

SERVER = Listener(Path("/run/virtiofs0"))


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    """Return the workshop of a daemon whose folders everybody may pass, but not of /tmp."""
    top = Path("/var/lib") / f"arcsup-shares-{os.getpid()}"
    top.mkdir(mode=0o755)
    try:
        workshop = SmallHost(top).fleet.workshop
        workshop.places.images.mkdir(parents=True, exist_ok=True)
        # As they are once a VM has run that is not root's.
        for folder in (workshop.places.state, workshop.places.images):
            folder.chmod(0o701)
        yield workshop
    finally:
        shutil.rmtree(top)


def sharing(path: Path, *, readonly: bool = False) -> Vm:
    return evolve(make_vm("a"), shares=(Share(str(path), "tag", readonly=readonly),))


def make_folder(workshop: Workshop, mode: int, uid: int = 0, gid: int = 0) -> Path:
    folder = workshop.places.images / "shared"
    folder.mkdir()
    os.chown(folder, uid, gid)
    folder.chmod(mode)
    return folder


def test_the_folder_of_all_images_is_no_share(workshop: Workshop) -> None:
    with pytest.raises(Terminal, match="holds the images of all VMs"):
        check_shares(sharing(workshop.places.images), workshop, (None,))


@pytest.mark.parametrize(
    ("mode", "uid", "gid"),
    [(0o701, 0, 0), (0o755, 0, 0), (0o710, 0, LOCAL_USER), (0o700, LOCAL_USER, 0)],
)
def test_what_a_guest_leaves_where_others_pass_is_refused(
    workshop: Workshop, mode: int, uid: int, gid: int
) -> None:
    folder = make_folder(workshop, mode, uid, gid)

    with pytest.raises(Terminal, match=r"shares\[0\]: others than root can pass") as refused:
        check_shares(sharing(folder), workshop, (SERVER,))

    assert f"chmod go-x {folder}" in refused.value.hint
    # Who can make no such program may serve it.
    filtered = evolve(workshop, no_privileged_files=True)
    check_shares(sharing(folder), filtered, (SERVER,))
    # Neither makes files of root's there.
    check_shares(sharing(folder), workshop, (None,))
    check_shares(sharing(folder, readonly=True), workshop, (SERVER,))


def test_a_set_user_id_program_in_an_allowed_share_is_in_nobodys_reach(workshop: Workshop) -> None:
    folder = make_folder(workshop, 0o700)
    check_shares(sharing(folder), workshop, (SERVER,))
    program = folder / "rootsh"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)

    with pytest.raises(PermissionError):
        act_as(LOCAL_USER, lambda: subprocess.run([program], check=True))
