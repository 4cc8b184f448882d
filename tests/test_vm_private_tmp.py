"""A /tmp of their own: programs see nothing of the host's, and all else as it is."""

import os
import subprocess
from pathlib import Path

import pytest
import trio
from attrs import evolve

from arcsup.model import QemuOptions, Share
from arcsup.places import Places
from arcsup.vm.private_tmp import (
    MOUNT,
    NAMESPACE,
    choose_private_tmp,
    find_obstacle,
    is_below_tmp,
    needs_host_tmp,
)
from arcsup.vm.process import ProcessEnd, start_gated
from tests.vm_samples import make_vm


def can_mount() -> bool:
    tried = subprocess.run([*NAMESPACE, "sh", "-c", MOUNT], capture_output=True, check=False)
    return os.geteuid() == 0 and tried.returncode == 0


mounts = pytest.mark.skipif(not can_mount(), reason="mounts nothing here")

SCRIPT = """
ls -A /tmp /var/tmp
echo mine >/tmp/of-the-vm && cat /var/tmp/of-the-vm
cat "/proc/self/fd/$1"
[ -c /dev/null ] && ls /dev/shm >/dev/null && echo " devices"
"""


@mounts
async def test_a_program_has_a_tmp_of_its_own_and_all_else_of_the_host(
    tmp_path: Path, short_dir: Path
) -> None:
    (short_dir / "of-the-host").write_text("passed")
    passed = os.open(short_dir / "of-the-host", os.O_RDONLY)
    gated = start_gated(
        ["sh", "-c", SCRIPT, "sh", str(passed)],
        boot_id="boot",
        output=tmp_path / "output",
        pass_fds=(passed,),
        private_tmp=True,
    )
    gated.open_gate()
    with trio.fail_after(30):
        assert await gated.process.wait() == ProcessEnd(code=0)
    gated.process.close()
    os.close(passed)
    words = (tmp_path / "output").read_text().split()
    assert words == ["/tmp:", "/var/tmp:", "mine", "passed", "devices"]
    assert not Path("/tmp/of-the-vm").exists()


async def test_folders_that_qemu_must_reach_are_not_hidden(short_dir: Path) -> None:
    places = Places.default(system=True)
    inside = evolve_places(places, state=short_dir)
    assert await find_obstacle(inside, ()) == f"{short_dir} is there, and QEMU must reach it"
    assert short_dir.name in await find_obstacle(places, (short_dir,))
    assert not await choose_private_tmp(inside, ())
    assert not await choose_private_tmp(Places.default(system=False), ())


def evolve_places(places: Places, *, state: Path) -> Places:
    return Places(
        config=places.config,
        vms=places.vms,
        run=places.run,
        state=state,
        log=places.log,
        sysfs=places.sysfs,
        system=places.system,
    )


def test_a_link_into_tmp_leads_there(short_dir: Path) -> None:
    link = short_dir / "link"
    link.symlink_to("/etc")
    assert not is_below_tmp(link)
    assert is_below_tmp(short_dir)
    assert is_below_tmp(Path("/var/tmp/a.iso"))
    assert not is_below_tmp(Path("/var/lib/arcsup/tmp/a.iso"))


def test_a_vm_that_names_something_in_tmp_keeps_the_hosts() -> None:
    vm = make_vm("plain")
    assert not needs_host_tmp(vm, [Path("/var/lib/arcsup/images/a.qcow2")])
    assert needs_host_tmp(vm, [Path("/tmp/debian.iso")])
    own = QemuOptions(args=("-qmp", "unix:/tmp/qmp.sock,server=on,wait=off"))
    assert needs_host_tmp(evolve(vm, qemu=own), [])
    assert needs_host_tmp(evolve(vm, qemu=QemuOptions(binary="/var/tmp/qemu")), [])
    assert needs_host_tmp(evolve(vm, shares=(Share("/tmp/shared", "tag"),)), [])
