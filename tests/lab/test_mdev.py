"""Mediated devices behave as the kernel's ABI page does not say (the kernel's samples).

Documentation/ABI/testing/sysfs-bus-vfio-mdev, drivers/vfio/mdev/mdev_core.c.
"""

import errno
from pathlib import Path

import pytest

from tests.lab.inner import StartQemu
from tests.lab.kernel import (
    MDEVS,
    Uevents,
    create,
    errno_of,
    is_blocked,
    open_device,
    read,
    remove,
    start_write,
    trace_functions,
    types_of,
    vfio_group,
)


def create_file(parent: Path, type_: str) -> Path:
    return parent / "mdev_supported_types" / type_ / "create"


def test_each_parent_creates_and_removes(sample_parent: Path, uuid: str) -> None:
    before = types_of(sample_parent)
    type_ = next(iter(before))
    mdev = create(sample_parent, type_, uuid)
    assert (mdev / "mdev_type").resolve() == (
        sample_parent / "mdev_supported_types" / type_
    ).resolve()
    assert types_of(sample_parent)[type_] < before[type_]
    remove(mdev)
    assert types_of(sample_parent) == before


def test_a_duplicate_uuid_is_eexist_on_any_parent(mtty: Path, mdpy: Path, uuid: str) -> None:
    create(mtty, "mtty-1", uuid)
    assert errno_of(create_file(mtty, "mtty-2"), uuid) == errno.EEXIST
    assert errno_of(create_file(mdpy, "mdpy-hd"), uuid) == errno.EEXIST


def test_an_uppercase_uuid_comes_back_in_lower_case(mtty: Path, uuid: str) -> None:
    create(mtty, "mtty-1", uuid.upper())
    assert [path.name for path in MDEVS.iterdir()] == [uuid]


@pytest.mark.parametrize("form", ["{%s}", "%sZ\n", "not-%s", " %s"])
def test_what_is_no_plain_uuid_is_einval(mtty: Path, uuid: str, form: str) -> None:
    assert errno_of(create_file(mtty, "mtty-1"), form % uuid) == errno.EINVAL


def test_one_character_after_the_uuid_is_not_looked_at(mtty: Path, uuid: str) -> None:
    assert errno_of(create_file(mtty, "mtty-1"), f"{uuid}Z") == 0
    assert (MDEVS / uuid).exists()


def test_a_uuid_without_dashes_is_einval(mtty: Path, uuid: str) -> None:
    assert errno_of(create_file(mtty, "mtty-1"), uuid.replace("-", "")) == errno.EINVAL


def test_a_core_counted_capacity_is_eusers_when_it_is_used_up(mdpy: Path) -> None:
    for number in range(4):
        create(mdpy, "mdpy-vga", f"00000000-0000-4000-8000-{number:012}")
    assert types_of(mdpy) == {"mdpy-hd": 0, "mdpy-vga": 0, "mdpy-xga": 0}
    fifth = "00000000-0000-4000-8000-000000000004"
    assert errno_of(create_file(mdpy, "mdpy-hd"), fifth) == errno.EUSERS


def test_a_driver_counted_capacity_is_enospc_when_it_is_used_up(mbochs: Path) -> None:
    for number in range(4):
        create(mbochs, "mbochs-large", f"00000000-0000-4000-8000-{number:012}")
    assert types_of(mbochs) == {"mbochs-large": 0, "mbochs-medium": 0, "mbochs-small": 0}
    fifth = "00000000-0000-4000-8000-000000000004"
    assert errno_of(create_file(mbochs, "mbochs-small"), fifth) == errno.ENOSPC


def test_one_type_takes_from_the_others(mbochs: Path, uuid: str) -> None:
    create(mbochs, "mbochs-large", uuid)
    assert types_of(mbochs) == {"mbochs-large": 3, "mbochs-medium": 12, "mbochs-small": 48}


def test_a_remove_of_a_device_in_use_blocks_until_it_is_closed(
    mtty: Path, uuid: str, uevents: Uevents
) -> None:
    mdev = create(mtty, "mtty-1", uuid)
    group = vfio_group(mdev)
    uevents.forget()
    with open_device(mdev):
        removal = start_write(mdev / "remove", "1")
        assert is_blocked(removal)
        # What a person sees meanwhile: the device is gone, its group is not, and nobody was told
        # (but for the end of its vfio-dev, since 6.2).
        assert not mdev.exists()
        assert group.exists()
        assert uuid not in {event.name for event in uevents.seen()}
        removal.terminate()
        assert is_blocked(removal, 1), "a signal does not end it"
    removal.wait(20)
    assert not group.exists()
    assert ("remove", uuid) in [(event.action, event.name) for event in uevents.seen()]


def test_a_second_opener_is_ebusy(mtty: Path, uuid: str) -> None:
    mdev = create(mtty, "mtty-1", uuid)
    with open_device(mdev), pytest.raises(OSError, match="busy") as caught, open_device(mdev):
        pass
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize(("text", "answer"), [("0", 0), ("x", errno.EINVAL)])
def test_other_writes_to_remove_do_not_remove(
    mtty: Path, uuid: str, text: str, answer: int
) -> None:
    mdev = create(mtty, "mtty-1", uuid)
    assert errno_of(mdev / "remove", text) == answer
    assert mdev.exists()


def test_creating_tells_in_this_order(mtty: Path, uuid: str, uevents: Uevents) -> None:
    mdev = create(mtty, "mtty-1", uuid)
    group = vfio_group(mdev).name
    seen = [(event.action, event.subsystem, event.name) for event in uevents.seen()]
    assert seen[0] == ("add", "mdev", uuid)
    assert ("add", "vfio", group) in seen
    assert seen[-1] == ("bind", "mdev", uuid)


def test_a_failed_create_tells_add_and_remove_but_not_bind(mbochs: Path, uevents: Uevents) -> None:
    for number in range(4):
        create(mbochs, "mbochs-large", f"00000000-0000-4000-8000-{number:012}")
    uevents.forget()
    fifth = "00000000-0000-4000-8000-000000000004"
    assert errno_of(create_file(mbochs, "mbochs-large"), fifth) == errno.ENOSPC
    seen = [(event.action, event.name) for event in uevents.seen()]
    assert seen == [("add", fifth), ("remove", fifth)]


def test_the_mdev_type_link_is_made_after_the_bind_event(mtty: Path, uuid: str) -> None:
    # Whoever looks at the event's moment finds no link now and then. Each broadcast is an event.
    with trace_functions("netlink_broadcast", "mdev_create_sysfs_files") as called:
        create(mtty, "mtty-1", uuid)
    assert called[-1] == "mdev_create_sysfs_files"
    assert called.count("netlink_broadcast") == 4, "add, add (vfio), add (vfio-dev), bind"


def test_the_vm_that_has_it_is_told_when_its_mdev_is_to_go(
    mtty: Path, uuid: str, inner_qemu: StartQemu
) -> None:
    mdev = create(mtty, "mtty-1", uuid)
    qemu = inner_qemu([f"vfio-pci,sysfsdev={mdev}"])
    removal = start_write(mdev / "remove", "1")
    assert is_blocked(removal)
    qemu.end()
    assert removal.wait(30) == 0


def test_the_group_of_an_mdev_is_named_noiommu_and_is_not(mtty: Path, uuid: str) -> None:
    mdev = create(mtty, "mtty-1", uuid)
    assert read((mdev / "iommu_group").resolve() / "name") == "vfio-noiommu"
    assert not vfio_group(mdev).name.startswith("noiommu")
