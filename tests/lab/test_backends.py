"""arcsup's back ends make and take back real devices, again and again, and never what is held."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arcsup.devices import Backend
from arcsup.errors import ArcsupError, Refused, Stuck, Terminal, Transient
from arcsup.host import binding, sriov
from arcsup.host.accounts import Account
from arcsup.host.slices import (
    OwnedSlice,
    SliceChoice,
    create_slice,
    is_ready,
    prepare_slice,
    remove_slice,
)
from arcsup.host.sriov import enable_vfs, find_vfs
from arcsup.host.sysfs import Sysfs
from arcsup.host.vfio_nodes import find_nodes
from arcsup.host.writer import (
    await_earlier_helpers,
    comes_true,
    is_unanswered,
    write_sysfs,
)
from tests.lab.inner import StartQemu
from tests.lab.kernel import (
    MDEVS,
    PCI,
    bind,
    create,
    driver_of,
    is_blocked,
    open_device,
    read,
    start_write,
    types_of,
    unbind,
    wait_until,
    write,
)

VendorVfs = Callable[..., list[Path]]

SYSFS = Sysfs(Path("/sys"))


def uuid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


async def prepare_mdev(parent: Path, type_: str, uuid: str) -> OwnedSlice:
    choice = SliceChoice(Backend.MDEV, 0, parent.name, parent.name, type_, uuid)
    return await prepare_slice(choice, SYSFS)


async def prepare_vendor(vf: Path, type_: str) -> OwnedSlice:
    card = (vf / "physfn").resolve().name
    choice = SliceChoice(Backend.VENDOR_VFIO, 0, card, vf.name, type_, vf.name)
    return await prepare_slice(choice, SYSFS)


async def prepare_function(function: Path, backend: Backend) -> OwnedSlice:
    choice = SliceChoice(backend, 0, function.name, function.name, None, function.name)
    return await prepare_slice(choice, SYSFS)


def override_of(function: Path) -> str:
    return read(function / "driver_override")


# ---- mediated devices ----


async def test_an_mdev_lives_its_whole_life(mbochs: Path, uuid: str, inner_qemu: StartQemu) -> None:
    before = types_of(mbochs)
    owned = await prepare_mdev(mbochs, "mbochs-small", uuid.upper())
    assert owned.path == f"/sys/bus/mdev/devices/{uuid}"
    assert is_ready(owned, SYSFS) == f"{uuid} is not there"
    await create_slice(owned, SYSFS)
    await create_slice(owned, SYSFS)
    assert types_of(mbochs)["mbochs-small"] == before["mbochs-small"] - 1
    (node,) = find_nodes(owned, SYSFS, iommufd=False)
    wait_until(lambda: is_ready(owned, SYSFS) == "")
    assert is_ready(owned, SYSFS, account=Account(65534, 65534)).startswith(
        f"{node} may not be read"
    )
    os.chown(node, 65534, 65534)
    assert "/dev/vfio/vfio" not in is_ready(owned, SYSFS, account=Account(65534, 65534))
    qemu = inner_qemu([f"vfio-pci,sysfsdev={owned.path}"])
    assert 0x0380 in qemu.classes()
    with pytest.raises(Refused, match=f"in use by process {qemu.process.pid}"):
        await remove_slice(owned, SYSFS)
    assert 0x0380 in qemu.classes(), "it was left alone"
    assert (MDEVS / uuid / "remove").exists(), "a remove that was written takes this away at once"
    qemu.end()
    await remove_slice(owned, SYSFS)
    assert types_of(mbochs) == before
    await remove_slice(owned, SYSFS)


@pytest.mark.parametrize(
    ("parent", "type_", "name"),
    [("mbochs", "mbochs-large", "ENOSPC"), ("mdpy", "mdpy-vga", "EUSERS")],
)
async def test_a_full_parent_may_be_free_later(parent: str, type_: str, name: str) -> None:
    path = Path("/sys/class/mdev_bus") / parent
    for number in range(4):
        create(path, type_, uuid_of(number))
    owned = await prepare_mdev(path, type_, uuid_of(4))
    with pytest.raises(Transient, match=rf"{type_} on {parent}: no room is left .*{name}"):
        await create_slice(owned, SYSFS)
    assert not (MDEVS / uuid_of(4)).exists()


async def test_an_unknown_type_is_refused_for_good(mbochs: Path, uuid: str) -> None:
    owned = await prepare_mdev(mbochs, "mbochs-huge", uuid)
    with pytest.raises(Terminal, match="mbochs has no type mbochs-huge") as caught:
        await create_slice(owned, SYSFS)
    assert caught.value.hint == "it offers mbochs-large, mbochs-medium, mbochs-small"


async def test_what_the_kernel_does_not_take_for_a_uuid_is_refused_for_good(mtty: Path) -> None:
    with pytest.raises(Terminal, match="EINVAL"):
        await create_slice(await prepare_mdev(mtty, "mtty-1", "not-a-uuid"), SYSFS)


async def test_another_device_of_our_uuid_is_left_alone(
    mtty: Path, mbochs: Path, uuid: str
) -> None:
    create(mtty, "mtty-1", uuid)
    owned = await prepare_mdev(mbochs, "mbochs-small", uuid)
    with pytest.raises(Refused, match="of type mtty-1 on mtty"):
        await create_slice(owned, SYSFS)
    with pytest.raises(Refused, match="of type mtty-1 on mtty"):
        await remove_slice(owned, SYSFS)
    assert (MDEVS / uuid).exists()


async def test_a_remove_that_does_not_come_back_is_stuck_and_delays_nobody(
    mtty: Path, uuid: str
) -> None:
    mdev = create(mtty, "mtty-1", uuid)
    with open_device(mdev):
        with pytest.raises(Stuck):
            await write_sysfs(str(mdev / "remove"), "1", seconds=3)
        owned = await prepare_mdev(mtty, "mtty-1", uuid_of(1))
        await create_slice(owned, SYSFS)
        await remove_slice(owned, SYSFS)
        with pytest.raises(Transient, match="still being removed"):
            await create_slice(await prepare_mdev(mtty, "mtty-1", uuid), SYSFS)
        with pytest.raises(Stuck, match="still being removed"):
            await remove_slice(await prepare_mdev(mtty, "mtty-1", uuid), SYSFS)
    wait_until(lambda: types_of(mtty)["mtty-1"] == 24)
    assert await comes_true(lambda: not is_unanswered(str(mdev / "remove")), seconds=20)
    await remove_slice(await prepare_mdev(mtty, "mtty-1", uuid), SYSFS)


ENDLESS = """
import sys, trio
from pathlib import Path
from arcsup.devices import Backend
from arcsup.host.slices import SliceChoice, create_slice, prepare_slice, remove_slice
from arcsup.host.sysfs import Sysfs

async def main():
    backend, parent, kind, identity = sys.argv[1:]
    choice = SliceChoice(Backend(backend), 0, parent, parent, kind or None, identity)
    sysfs = Sysfs(Path("/sys"))
    owned = await prepare_slice(choice, sysfs)
    print("ready", flush=True)
    while True:
        await create_slice(owned, sysfs)
        await remove_slice(owned, sysfs)

trio.run(main)
"""


@contextlib.contextmanager
def busy_daemon(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Make and take back one slice again and again, elsewhere, until killed."""
    command = [sys.executable, "-c", ENDLESS, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.7])
async def test_a_daemon_killed_at_any_moment_leaves_what_can_be_repaired(
    mbochs: Path, uuid: str, cards: list[Path], delay: float
) -> None:
    before = types_of(mbochs)
    card = cards[0]
    mdev = await prepare_mdev(mbochs, "mbochs-small", uuid)
    function = await prepare_function(card, Backend.PASSTHROUGH)
    with (
        busy_daemon("mdev", "mbochs", "mbochs-small", uuid) as first,
        busy_daemon("passthrough", card.name, "", card.name) as second,
    ):
        time.sleep(delay)
        first.kill()
        second.kill()
    # As the next daemon does: what the killed ones have begun goes on in the kernel.
    await await_earlier_helpers(seconds=30)
    for owned in (mdev, function):
        await create_slice(owned, SYSFS)
        (node,) = find_nodes(owned, SYSFS, iommufd=False)
        assert is_ready(owned, SYSFS) in ("", f"{node} is not there yet")
        await remove_slice(owned, SYSFS)
    assert types_of(mbochs) == before
    assert (driver_of(card), override_of(card)) == (None, "(null)")


async def test_a_daemon_killed_at_any_moment_leaves_what_can_be_taken_back(
    mbochs: Path, uuid: str, cards: list[Path]
) -> None:
    before = types_of(mbochs)
    card = cards[0]
    mdev = await prepare_mdev(mbochs, "mbochs-small", uuid)
    function = await prepare_function(card, Backend.PASSTHROUGH)
    with (
        busy_daemon("mdev", "mbochs", "mbochs-small", uuid) as first,
        busy_daemon("passthrough", card.name, "", card.name) as second,
    ):
        time.sleep(0.5)
        first.kill()
        second.kill()
    # As the next daemon does: what the killed ones have begun goes on in the kernel.
    await await_earlier_helpers(seconds=30)
    for owned in (mdev, function):
        await remove_slice(owned, SYSFS)
    assert types_of(mbochs) == before
    assert (driver_of(card), override_of(card)) == (None, "(null)")


async def test_a_full_nvidia_card_may_be_free_later(nvidia: Callable[..., Path]) -> None:
    card = nvidia(card="p4", rule="same-size")
    create(card, "nvidia-64", uuid_of(0))
    with pytest.raises(Transient, match=r"no room for it now.*EIO"):
        await create_slice(await prepare_mdev(card, "nvidia-66", uuid_of(1)), SYSFS)
    owned = await prepare_mdev(card, "nvidia-64", uuid_of(1))
    await create_slice(owned, SYSFS)
    wait_until(lambda: is_ready(owned, SYSFS) == "")
    await remove_slice(owned, SYSFS)


# ---- NVIDIA's vendor vGPUs ----


@pytest.mark.parametrize(
    ("rule", "beside"),
    [
        ("same-type", {"NVIDIA L40S-2Q"}),
        ("same-size", {"NVIDIA L40S-2Q", "NVIDIA L40S-2B"}),
        ("mixed", {"NVIDIA L40S-2Q", "NVIDIA L40S-2B", "NVIDIA L40S-4Q"}),
    ],
)
async def test_vendor_vgpus_live_beside_each_other_as_the_rule_lets_them(
    vendor_vfs: VendorVfs, rule: str, beside: set[str]
) -> None:
    vf, other, *_ = vendor_vfs(rule=rule)
    names = ("NVIDIA L40S-2Q", "NVIDIA L40S-2B", "NVIDIA L40S-4Q")
    wanted = {name: await prepare_vendor(other, name) for name in names}
    first = await prepare_vendor(vf, "NVIDIA L40S-2Q")
    assert first.type == "nvidia-1148"
    await create_slice(first, SYSFS)
    await create_slice(first, SYSFS)
    assert is_ready(first, SYSFS) == ""
    for name, owned in wanted.items():
        if name in beside:
            await create_slice(owned, SYSFS)
            assert read(other / "nvidia/current_vgpu_type") != "0"
        else:
            with pytest.raises(Transient, match=r"no room for this type now.*EIO"):
                await create_slice(owned, SYSFS)
        await remove_slice(owned, SYSFS)
    await remove_slice(first, SYSFS)
    await remove_slice(first, SYSFS)
    assert read(vf / "nvidia/current_vgpu_type") == "0"
    assert driver_of(vf) == "nvidia"


async def test_a_vendor_vgpu_in_use_is_left_alone(vendor_vfs: VendorVfs) -> None:
    vf = vendor_vfs(linger_ms="2500")[0]
    owned = await prepare_vendor(vf, "nvidia-1148")
    await create_slice(owned, SYSFS)
    with (
        open_device(vf),
        pytest.raises(Refused, match=f"{vf.name} is in use by process {os.getpid()}"),
    ):
        await remove_slice(owned, SYSFS)
    # The driver says EBUSY for a while after the VM.
    await remove_slice(owned, SYSFS)
    assert read(vf / "nvidia/current_vgpu_type") == "0"


async def test_somebody_elses_vendor_vgpu_is_left_alone(vendor_vfs: VendorVfs) -> None:
    vf = vendor_vfs()[0]
    owned = await prepare_vendor(vf, "nvidia-1148")
    write(vf / "nvidia/current_vgpu_type", "1146")
    with pytest.raises(Transient, match="given type nvidia-1146 by somebody else"):
        await create_slice(owned, SYSFS)
    await remove_slice(owned, SYSFS)
    assert read(vf / "nvidia/current_vgpu_type") == "1146"
    write(vf / "nvidia/current_vgpu_type", "0")


async def test_a_wedged_vf_is_stuck_and_says_what_to_do(vendor_vfs: VendorVfs) -> None:
    vf = vendor_vfs()[0]
    owned = await prepare_vendor(vf, "nvidia-1148")
    await create_slice(owned, SYSFS)
    write(vf / "vgpu_sim/wedge", "1")
    with pytest.raises(Stuck, match="keeps its type") as caught:
        await remove_slice(owned, SYSFS)
    assert "cycle its virtual functions" in caught.value.hint


async def test_a_vendors_vf_is_never_taken_from_its_driver(vendor_vfs: VendorVfs) -> None:
    vf = vendor_vfs()[0]
    with pytest.raises(Terminal, match="virtual function of NVIDIA's"):
        await create_slice(await prepare_function(vf, Backend.SRIOV), SYSFS)
    assert driver_of(vf) == "nvidia"


# ---- virtual functions and whole cards ----


async def test_a_vf_is_made_bound_and_given_back(pf: Path, inner_qemu: StartQemu) -> None:
    write(pf / "sriov_drivers_autoprobe", "0")
    await enable_vfs(pf.name, 2, SYSFS)
    vf = PCI / find_vfs(SYSFS, pf.name)[0]
    owned = await prepare_function(vf, Backend.SRIOV)
    await create_slice(owned, SYSFS)
    await create_slice(owned, SYSFS)
    wait_until(lambda: is_ready(owned, SYSFS) == "")
    qemu = inner_qemu([f"vfio-pci,sysfsdev={owned.path}"])
    assert 0x0108 in qemu.classes()
    with pytest.raises(Refused, match=f"in use by process {qemu.process.pid}"):
        await remove_slice(owned, SYSFS)
    qemu.end()
    await remove_slice(owned, SYSFS)
    assert (driver_of(vf), override_of(vf)) == (None, "(null)")
    await enable_vfs(pf.name, 0, SYSFS)
    await remove_slice(owned, SYSFS)


async def test_a_card_comes_back_to_its_driver_and_override(gvtg: Path) -> None:
    owned = await prepare_function(gvtg, Backend.PASSTHROUGH)
    await create_slice(owned, SYSFS)
    wait_until(lambda: is_ready(owned, SYSFS) == "")
    assert driver_of(gvtg) == "vfio-pci"
    await remove_slice(owned, SYSFS)
    assert (driver_of(gvtg), override_of(gvtg)) == ("i915", "i915")
    write(gvtg / "driver_override", "\n")
    owned = await prepare_function(gvtg, Backend.PASSTHROUGH)
    await create_slice(owned, SYSFS)
    await remove_slice(owned, SYSFS)
    assert (driver_of(gvtg), override_of(gvtg)) == ("i915", "(null)")


async def test_companions_go_along_and_come_back(cards: list[Path], gvtg: Path) -> None:
    card = cards[0]
    choice = SliceChoice(
        Backend.PASSTHROUGH, 0, card.name, card.name, None, card.name, companions=(gvtg.name,)
    )
    owned = await prepare_slice(choice, SYSFS)
    await create_slice(owned, SYSFS)
    assert (driver_of(card), driver_of(gvtg)) == ("vfio-pci", "vfio-pci")
    with open_device(gvtg), pytest.raises(Refused, match=f"{gvtg.name} is in use by process"):
        await remove_slice(owned, SYSFS)
    assert driver_of(card) == "vfio-pci", "what is not held stays with what is"
    await remove_slice(owned, SYSFS)
    assert (driver_of(card), driver_of(gvtg)) == (None, "i915")


async def test_a_card_that_is_cut_is_not_taken_as_a_whole(gvtg: Path, uuid: str) -> None:
    create(gvtg, "i915-GVTg_V5_8", uuid)
    with pytest.raises(Refused, match=f"has mediated devices .{uuid}"):
        await create_slice(await prepare_function(gvtg, Backend.PASSTHROUGH), SYSFS)
    assert driver_of(gvtg) == "i915"


async def test_a_card_that_somebody_has_bound_elsewhere_is_left_there(cards: list[Path]) -> None:
    card = cards[0]
    owned = await prepare_function(card, Backend.PASSTHROUGH)
    await create_slice(owned, SYSFS)
    bind(card, "nvidia")
    await remove_slice(owned, SYSFS)
    assert (driver_of(card), override_of(card)) == ("nvidia", "nvidia")
    unbind(card)


async def test_a_look_at_the_override_that_an_unbind_holds_up_is_stuck(
    cards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = cards[0]
    monkeypatch.setattr(binding, "_SECONDS", 3.0)
    bind(card, "vfio-pci")
    with open_device(card):
        unbinding = start_write(card / "driver/unbind", card.name)
        wait_until(lambda: driver_of(card) is None)
        look = subprocess.Popen(["/usr/bin/cat", card / "driver_override"], stdout=subprocess.PIPE)
        # Late 6.12 has a lock of its own for the override; before, it is the device's.
        stuck = pytest.raises(Stuck, match="driver_override")
        with stuck if is_blocked(look) else contextlib.nullcontext():
            await prepare_function(card, Backend.PASSTHROUGH)
    assert unbinding.wait(20) == 0
    assert look.communicate(timeout=20)[0] == b"vfio-pci\n"
    unbind(card)


async def test_the_number_of_vfs_changes_by_way_of_none(pf: Path) -> None:
    write(pf / "sriov_drivers_autoprobe", "0")
    for count in (2, 2, 4, 1, 0, 0):
        await enable_vfs(pf.name, count, SYSFS)
        assert len(find_vfs(SYSFS, pf.name)) == count


async def test_vfs_do_not_change_while_one_is_handed_out(pf: Path) -> None:
    write(pf / "sriov_drivers_autoprobe", "0")
    await enable_vfs(pf.name, 2, SYSFS)
    vf = PCI / find_vfs(SYSFS, pf.name)[1]
    owned = await prepare_function(vf, Backend.SRIOV)
    await create_slice(owned, SYSFS)
    with pytest.raises(Refused, match=f"{vf.name} is handed out"):
        await enable_vfs(pf.name, 4, SYSFS)
    with pytest.raises(Refused, match="has 2 virtual functions"):
        await create_slice(await prepare_function(pf, Backend.PASSTHROUGH), SYSFS)
    await remove_slice(owned, SYSFS)


async def test_vfs_do_not_change_while_one_has_a_vgpu(vendor_vfs: VendorVfs, pf: Path) -> None:
    vf = vendor_vfs()[0]
    write(vf / "nvidia/current_vgpu_type", "1148")
    with pytest.raises(Refused, match="vGPU type nvidia-1148"):
        await enable_vfs(pf.name, 0, SYSFS)
    write(vf / "nvidia/current_vgpu_type", "0")


async def test_an_impossible_number_of_vfs_says_why(pf: Path, cards: list[Path]) -> None:
    async def answer(function: Path, count: int) -> ArcsupError:
        with pytest.raises(ArcsupError) as caught:
            await enable_vfs(function.name, count, SYSFS)
        return caught.value

    assert str(await answer(pf, 5)) == f"{pf.name} can have 4 virtual functions, not 5"
    assert str(await answer(cards[0], 1)) == f"{cards[0].name} has no SR-IOV"
    write(pf / "driver/unbind", pf.name)
    try:
        error = await answer(pf, 1)
    finally:
        write(Path("/sys/bus/pci/drivers_probe"), pf.name)
    assert isinstance(error, Transient)
    assert "no driver that makes virtual functions is bound" in str(error)


async def test_a_stuck_number_of_vfs_delays_no_other_slice(
    pf: Path, mbochs: Path, uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sriov, "_WRITE_SECONDS", 3.0)
    write(pf / "sriov_drivers_autoprobe", "0")
    await enable_vfs(pf.name, 1, SYSFS)
    vf = PCI / find_vfs(SYSFS, pf.name)[0]
    bind(vf, "vfio-pci")
    with open_device(vf):
        removal = start_write(pf / "sriov_numvfs", "0")
        assert is_blocked(removal)
        with pytest.raises((Stuck, Refused)):
            await enable_vfs(pf.name, 4, SYSFS)
        owned = await prepare_mdev(mbochs, "mbochs-small", uuid)
        await create_slice(owned, SYSFS)
        await remove_slice(owned, SYSFS)
    assert removal.wait(30) == 0
    wait_until(lambda: len(find_vfs(SYSFS, pf.name)) in (0, 4))
