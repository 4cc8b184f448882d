"""What each mode of a run makes of a VM."""

import pytest
from attrs import evolve

from arcsup.model import (
    Audio,
    Boot,
    Disk,
    DiskBus,
    DiskFormat,
    Display,
    DisplayType,
    GpuRequest,
    LookingGlass,
    MiB,
    QemuOptions,
    Restart,
    RestartPolicy,
    Share,
    Vm,
)
from arcsup.plan.mode import NORMAL, Mode, Purpose, in_mode
from tests.vm_samples import make_vm

WINDOWS = evolve(
    make_vm("windows"),
    disks=(Disk("windows.qcow2", MiB(10)), Disk("data.qcow2", MiB(20))),
    cdroms=("drivers.iso",),
    gpus=(GpuRequest(),),
    display=Display(DisplayType.SPICE, "127.0.0.1", 5930),
    looking_glass=LookingGlass(),
    audio=Audio.SCREAM,
    shares=(Share("/srv", "shared"),),
    boot=Boot("vmlinuz"),
    restart=Restart(RestartPolicy.ALWAYS),
    qemu=QemuOptions(
        args=("-set", "device.gpu0.x-pci-device-id=1", "-set", "device.vga.x=1", "-no-hpet")
    ),
)
CREATE = Mode(Purpose.CREATE, media=("/iso/win.iso", "/iso/virtio.iso"), disk_mib=MiB(65536))


def test_the_normal_mode_changes_nothing() -> None:
    assert in_mode(WINDOWS, NORMAL) is WINDOWS
    assert NORMAL.words == ()


def test_create_boots_the_installer_without_gpu_shared_memory_or_spice() -> None:
    vm = in_mode(WINDOWS, CREATE)

    assert vm.cdroms == ("/iso/win.iso", "/iso/virtio.iso", "drivers.iso")
    assert [disk.size_mib for disk in vm.disks] == [65536, 20]
    assert (vm.gpus, vm.looking_glass, vm.shares, vm.boot) == ((), None, (), None)
    assert (vm.audio, vm.display) == (Audio.NONE, Display(DisplayType.VNC, "127.0.0.1", 5930))
    assert vm.restart.policy is RestartPolicy.ON_FAILURE
    assert not vm.guest_tools


def test_a_cloud_image_finds_its_seed_on_the_bus_that_it_boots_from() -> None:
    disk = Disk("web.qcow2", bus=DiskBus.NVME)
    mode = Mode(Purpose.CREATE, media=("/seed.iso",), disk_mib=MiB(1024), base="/cloud.qcow2")

    vm = in_mode(evolve(WINDOWS, disks=(disk,)), mode)

    assert vm.disks == (
        evolve(disk, size_mib=MiB(1024), base="/cloud.qcow2"),
        Disk("/seed.iso", format=DiskFormat.RAW, bus=DiskBus.NVME, readonly=True),
    )
    assert vm.cdroms == ("drivers.iso",)


def test_an_installer_that_the_file_names_already_is_in_one_drive() -> None:
    vm = in_mode(evolve(WINDOWS, cdroms=("/iso/win.iso",)), CREATE)

    assert vm.cdroms == ("/iso/win.iso", "/iso/virtio.iso")


def test_preinstall_keeps_the_gpu_and_shared_memory_and_adds_the_guest_tools() -> None:
    vm = in_mode(WINDOWS, Mode(Purpose.PREINSTALL))

    assert (vm.gpus, vm.looking_glass, vm.audio) == (
        WINDOWS.gpus,
        WINDOWS.looking_glass,
        Audio.SCREAM,
    )
    assert vm.guest_tools
    assert vm.display.type is DisplayType.VNC


def test_what_is_installed_is_kept_also_on_ephemeral_disks() -> None:
    vm = evolve(WINDOWS, disks=(Disk("windows.qcow2", ephemeral=True),))

    kept = {
        purpose: not in_mode(vm, Mode(purpose)).disks[0].ephemeral
        for purpose in (Purpose.PREINSTALL, Purpose.SAFE)
    }
    assert kept == {Purpose.PREINSTALL: True, Purpose.SAFE: False}
    assert not in_mode(vm, CREATE).disks[0].ephemeral


def test_the_safe_mode_differs_in_the_screen_alone() -> None:
    vm = in_mode(WINDOWS, Mode(Purpose.SAFE))

    assert evolve(vm, display=WINDOWS.display) == WINDOWS
    assert vm.display.type is DisplayType.VNC


def test_without_its_gpus_nothing_is_set_of_them_either() -> None:
    vm = in_mode(WINDOWS, Mode(disable_gpu=True))

    assert vm.qemu.args == ("-set", "device.vga.x=1", "-no-hpet")
    assert evolve(vm, gpus=WINDOWS.gpus, qemu=WINDOWS.qemu) == WINDOWS


def shown(display: Display, audio: Audio = Audio.NONE) -> Vm:
    return in_mode(evolve(WINDOWS, display=display, audio=audio), Mode(Purpose.SAFE))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Display(), Display(DisplayType.VNC)),
        (Display(DisplayType.EGL_HEADLESS), Display(DisplayType.VNC)),
        (Display(DisplayType.SPICE), Display(DisplayType.VNC)),
        # QEMU's VNC has no port that low.
        (Display(DisplayType.SPICE, "::1", 3001), Display(DisplayType.VNC)),
        (Display(DisplayType.VNC, "::1", 5901), Display(DisplayType.VNC, "::1", 5901)),
        (Display(DisplayType.GTK), Display(DisplayType.GTK)),
    ],
)
def test_a_screen_that_people_can_see_stays_and_any_other_becomes_vnc(
    before: Display, after: Display
) -> None:
    assert shown(before).display == after


def test_sound_goes_where_the_picture_goes() -> None:
    spice = Display(DisplayType.SPICE)

    assert shown(spice, Audio.SPICE).audio is Audio.NONE
    assert shown(spice, Audio.PIPEWIRE).audio is Audio.PIPEWIRE


def test_a_mode_has_the_words_of_the_command_line() -> None:
    assert Mode(Purpose.PREINSTALL, disable_gpu=True).words == ("preinstall", "disable-gpu")
    assert CREATE.words == ("create",)
