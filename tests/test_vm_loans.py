"""Files lent to QEMU's user: never another one than was meant, and always put back."""

import os
import stat
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.vm.chains import ChainStore, Link
from arcsup.vm.loans import Access, Loan, Terms, WantedFile, find_loans, lend, put_back

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")

USER = Account(60600, 60601)
READERS = 60602


@pytest.fixture
def images(short_dir: Path) -> Path:
    """Return a folder for images; beside it is what no VM may have."""
    folder = short_dir / "images"
    folder.mkdir(mode=0o711)
    secret = short_dir / "secret"
    secret.write_text("of the host\n")
    secret.chmod(0o600)
    return folder


def terms(images: Path, account: Account = USER, links: tuple[Link, ...] = ()) -> Terms:
    account = Account(account.uid, account.gid, (READERS,))
    return Terms(account, READERS, (images,), links=links)


@contextmanager
def found(
    images: Path,
    *wanted: WantedFile,
    running: Mapping[tuple[int, int], Loan] = {},
    account: Account = USER,
) -> Iterator[list[tuple[Loan, int]]]:
    with ExitStack() as opened:
        yield find_loans(wanted, terms(images, account), running, opened)[0]


async def borrow(
    images: Path, *wanted: WantedFile, running: dict[tuple[int, int], Loan] | None = None
) -> list[Loan]:
    with found(images, *wanted, running=running or {}) as loans:
        await lend(loans)
        return [loan for loan, _ in loans]


def disk(path: Path, access: Access = Access.OWN, *, qcow2: bool = False) -> WantedFile:
    return WantedFile("disks[0]", path, access, is_qcow2=qcow2)


def make(path: Path, mode: int = 0o640) -> Path:
    path.touch()
    path.chmod(mode)
    return path


def whose(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


async def test_a_disk_belongs_to_qemus_user_and_afterwards_to_its_owner(images: Path) -> None:
    image = make(images / "a.raw", 0o400)
    os.chown(image, 7, 8)
    image.chmod(0o400)

    loans = await borrow(images, disk(image))

    assert whose(image) == (USER.uid, 8, 0o600)
    assert put_back(loans, {}) == ({}, [])
    assert whose(image) == (7, 8, 0o400)
    # A daemon that died in between does it again.
    assert put_back(loans, {}) == ({}, [])
    assert whose(image) == (7, 8, 0o400)


async def test_what_two_vms_read_is_put_back_when_the_second_has_ended(images: Path) -> None:
    image = make(images / "base.raw")

    first = await borrow(images, disk(image, Access.READ))
    assert whose(image) == (0, READERS, 0o640)
    second = await borrow(
        images, disk(image, Access.READ), running={loan.identity: loan for loan in first}
    )
    assert second == first
    assert put_back(first, {loan.identity: loan for loan in second}) == ({}, [])
    assert whose(image) == (0, READERS, 0o640)

    assert put_back(second, {}) == ({}, [])
    assert whose(image) == (0, 0, 0o640)


async def test_what_everybody_reads_needs_no_loan_wherever_it_is(images: Path) -> None:
    public = make(images.parent / "public.iso", 0o644)

    assert await borrow(images, disk(public, Access.READ)) == []
    with pytest.raises(Terminal, match="outside of the folders for images"):
        await borrow(images, disk(public))


@pytest.mark.parametrize("access", list(Access))
async def test_what_is_outside_of_the_folders_is_refused(images: Path, access: Access) -> None:
    with pytest.raises(Terminal, match="outside of the folders for images"):
        await borrow(images, disk(images.parent / "secret", access))
    with pytest.raises(Terminal, match="goes up"):
        await borrow(images, disk(images / ".." / "secret", access))
    assert whose(images.parent / "secret") == (0, 0, 0o600)


async def test_a_link_that_others_can_make_leads_nowhere(images: Path) -> None:
    images.chmod(0o777)
    (images / "a.raw").symlink_to(images.parent / "secret")
    (images / "folder").symlink_to("/etc")

    with pytest.raises(Terminal, match="is a link that leads elsewhere"):
        await borrow(images, disk(images / "a.raw"))
    with pytest.raises(Terminal, match="is a link that leads elsewhere"):
        await borrow(images, disk(images / "folder" / "shadow", Access.READ))
    assert whose(images.parent / "secret") == (0, 0, 0o600)


async def test_a_link_that_only_root_can_have_made_is_roots_will(images: Path) -> None:
    elsewhere = make(images.parent / "elsewhere.raw")
    (images / "a.raw").symlink_to("../elsewhere.raw")

    loans = await borrow(images, disk(images / "a.raw"))

    assert whose(elsewhere)[0] == USER.uid
    put_back(loans, {})
    # What was lent is known by what it is: its own name is that of the link.
    assert [loan.path for loan in loans] == [str(elsewhere)]
    assert whose(elsewhere) == (0, 0, 0o640)


async def test_another_name_of_a_file_is_refused(images: Path) -> None:
    os.link(images.parent / "secret", images / "a.raw")

    with pytest.raises(Terminal, match="has 2 names"):
        await borrow(images, disk(images / "a.raw"))
    assert whose(images.parent / "secret") == (0, 0, 0o600)


async def test_links_in_a_circle_end(images: Path) -> None:
    (images / "a.raw").symlink_to("a.raw")

    with pytest.raises(Terminal, match="is a link"):
        await borrow(images, disk(images / "a.raw"))


async def test_a_folder_or_a_pipe_is_no_image(images: Path) -> None:
    os.mkfifo(images / "pipe")
    (images / "folder").mkdir()

    for name in ("pipe", "folder"):
        with pytest.raises(Terminal, match="no file and no block device"):
            await borrow(images, disk(images / name))


async def test_a_folder_that_qemus_user_cannot_pass_is_named(images: Path) -> None:
    closed = images / "closed"
    closed.mkdir(mode=0o700)
    make(closed / "a.raw")

    with pytest.raises(Terminal, match=f"who cannot pass through {closed}"):
        await borrow(images, disk(closed / "a.raw"))


async def test_a_file_that_took_the_others_name_is_not_given_away(images: Path) -> None:
    image = make(images / "a.raw")
    loans = await borrow(images, disk(image))
    image.rename(images / "moved")
    image.symlink_to(images.parent / "secret")
    assert put_back(loans, {}) == ({}, [])
    image.unlink()
    make(image, 0o600)
    os.chown(image, 9, 9)

    assert put_back(loans, {}) == ({}, [])
    assert whose(image) == (9, 9, 0o600)
    assert whose(images.parent / "secret") == (0, 0, 0o600)


async def test_the_whole_chain_below_an_overlay_can_be_read(images: Path) -> None:
    base, overlay = make(images / "base.qcow2"), images / "top.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*create, base, "1M"], check=True)
    subprocess.run([*create, "-b", "base.qcow2", "-F", "qcow2", overlay], check=True)
    base.chmod(0o600)

    loans = await borrow(images, disk(overlay, qcow2=True))

    assert {Path(loan.path).name for loan in loans} == {"base.qcow2", "top.qcow2"}
    assert whose(base) == (0, READERS, 0o640)
    put_back(loans, {})
    assert whose(base) == (0, 0, 0o600)


def hostile(base: bytes, *, size: int | None = None, features: int = 0) -> bytes:
    length = len(base) if size is None else size
    header = struct.pack(">4sIQI52xQ", b"QFI\xfb", 3, 104, length, features)
    return header.ljust(104, b"\0") + base


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (hostile(b"/etc/shadow"), "outside of the folders"),
        (hostile(b"../secret"), "goes up"),
        (hostile(b"json:{}"), "which is no file"),
        (hostile(b"nbd://localhost/x"), "which is no file"),
        (hostile(b"a.qcow2"), "more than 32 images"),
        (hostile(b"a", size=2**31), "header is damaged"),
        (hostile(b"a\0b"), "header is damaged"),
        (hostile(b"", features=4), "keeps its data in another file"),
        (hostile(b"gone.qcow2"), "No such file"),
    ],
)
async def test_an_image_that_names_what_it_must_not_is_refused(
    images: Path, content: bytes, why: str
) -> None:
    image = make(images / "a.qcow2")
    image.write_bytes(content)

    with pytest.raises(Terminal, match=why):
        await borrow(images, disk(image, qcow2=True))
    assert whose(image) == (0, 0, 0o640)


async def test_a_lent_folder_comes_back_with_what_was_made_in_it(images: Path) -> None:
    folder = images.parent / "tpm"
    folder.mkdir(mode=0o700)
    make(folder / "old", 0o600)
    wanted = WantedFile("the TPM's state", folder, Access.OWN, own_file=True)
    loans = await borrow(images, wanted)
    assert whose(folder / "old") == (USER.uid, 0, 0o600)
    for name in ("new", "linked"):
        make(folder / name, 0o600)
        os.chown(folder / name, USER.uid, USER.gid)
    os.link(folder / "linked", folder / "again")
    (folder / "trap").symlink_to(images.parent / "secret")
    os.link(images.parent / "secret", folder / "other-name")

    assert put_back(loans, {}) == ({}, [])

    assert whose(folder) == (0, 0, 0o700)
    assert whose(folder / "new") == whose(folder / "old") == (0, 0, 0o600)
    assert whose(folder / "linked") == (USER.uid, USER.gid, 0o600)
    assert whose(images.parent / "secret") == (0, 0, 0o600)


async def test_a_file_with_another_name_is_refused_and_stays_whose_it_is(images: Path) -> None:
    (images / "one.qcow2").hardlink_to(images.parent / "secret")
    before = whose(images.parent / "secret")

    for access in Access:
        with pytest.raises(Terminal, match="2 names"):
            await borrow(images, disk(images / "one.qcow2", access))

    assert whose(images.parent / "secret") == before


def overlay(path: Path, base: Path, base_format: str = "qcow2") -> Path:
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if base_format == "qcow2" and not base.exists():
        subprocess.run([*create, base, "1M"], check=True)
        base.chmod(0o600)
    subprocess.run([*create, "-b", base, "-F", base_format, path], check=True)
    path.chmod(0o640)
    return path


def name_base(path: Path, base: str) -> None:
    """Write another base into a header, as a program can that broke out of its guest."""
    with path.open("r+b") as image:
        image.seek(65536 * 8)
        image.write(base.encode())
        image.seek(8)
        image.write(struct.pack(">QI", 65536 * 8, len(base)))


def look(images: Path, *wanted: WantedFile, links: tuple[Link, ...] = ()) -> tuple[Link, ...]:
    """Return what is known of the images once these were lent."""
    with ExitStack() as opened:
        return find_loans(wanted, terms(images, links=links), {}, opened)[1]


async def test_a_base_that_a_guest_wrote_into_its_header_is_not_lent(images: Path) -> None:
    top = overlay(images / "top.qcow2", images / "base.qcow2")
    links = look(images, disk(top, qcow2=True))
    other = make(images / "other.raw", 0o600)

    name_base(top, str(other))

    with pytest.raises(Terminal, match=r"other.raw, which built upon .*base.qcow2 when it was le"):
        look(images, disk(top, qcow2=True), links=links)
    # A renamed image is the same.
    moved = top.rename(images / "moved.qcow2")
    with pytest.raises(Terminal, match="a guest can have written that") as refused:
        look(images, disk(moved, qcow2=True), links=links)
    assert f"say `base: {other}`" in refused.value.hint
    assert whose(other) == (0, 0, 0o600)


async def test_an_image_that_built_upon_nothing_gets_no_base_by_its_header(images: Path) -> None:
    top, other = images / "top.qcow2", make(images / "other.raw", 0o600)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", top, "1M"], check=True)
    links = look(images, disk(top, qcow2=True))

    name_base(top, str(other))

    with pytest.raises(Terminal, match="built upon nothing when it was lent first"):
        look(images, disk(top, qcow2=True), links=links)


async def test_a_base_below_a_base_is_held_to_what_was_known_too(images: Path) -> None:
    middle = overlay(images / "middle.qcow2", images / "base.qcow2")
    links = look(images, disk(middle, qcow2=True))
    top = overlay(images / "top.qcow2", middle)
    name_base(middle, str(make(images / "other.raw", 0o600)))

    with pytest.raises(Terminal, match=r"its base: .*middle.qcow2 says that it builds upon"):
        look(images, disk(top, qcow2=True), links=links)


async def test_a_base_that_the_vm_file_names_is_lent_whatever_was_known(images: Path) -> None:
    top = overlay(images / "top.qcow2", images / "base.qcow2")
    links = look(images, disk(top, qcow2=True))
    other = make(images / "other.raw", 0o600)
    name_base(top, str(other))

    named = WantedFile("disks[0]", top, Access.OWN, is_qcow2=True, bases=(other,))

    known = look(images, named, links=links)
    assert [link.base.path for link in known if link.base] == [str(other)]


async def test_a_base_that_was_exchanged_for_a_newer_one_is_lent(images: Path) -> None:
    top = overlay(images / "top.qcow2", images / "base.qcow2")
    links = look(images, disk(top, qcow2=True))
    (images / "base.qcow2").rename(images / "old.qcow2")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", images / "base.qcow2", "1M"], check=True
    )

    assert len(look(images, disk(top, qcow2=True), links=links)) == 2


async def test_what_a_guest_wrote_to_a_raw_disk_is_no_header(images: Path) -> None:
    raw, other = images / "a.raw", make(images / "other.raw", 0o600)
    make(raw, 0o600).write_bytes(bytes(1 << 20))
    links = look(images, disk(raw))
    raw.write_bytes(hostile(str(other).encode()).ljust(1 << 20, b"\0"))
    top = overlay(images / "top.qcow2", raw, "raw")

    known = look(images, disk(top, qcow2=True), links=links)

    assert {link.base.path for link in known if link.base} == {str(raw)}
    # Nor does it become one when the VM's file calls it qcow2 by now.
    with pytest.raises(Terminal, match="built upon nothing"):
        look(images, disk(raw, qcow2=True), links=links)


@pytest.mark.parametrize(
    ("image_owner", "mode", "base_owner", "base_mode", "lent"),
    [
        (0, 0o640, 0, 0o600, True),
        (0, 0o660, 0, 0o600, False),
        (7, 0o640, 0, 0o600, False),
        (7, 0o640, 7, 0o600, True),
        (7, 0o640, 0, 0o644, True),
    ],
)
async def test_the_header_of_a_new_image_leads_to_what_its_writer_may_read(
    images: Path, image_owner: int, mode: int, base_owner: int, base_mode: int, *, lent: bool
) -> None:
    top = overlay(images / "top.qcow2", images / "base.qcow2")
    os.chown(top, image_owner, image_owner)
    top.chmod(mode)
    os.chown(images / "base.qcow2", base_owner, base_owner)
    (images / "base.qcow2").chmod(base_mode)

    if lent:
        assert len(look(images, disk(top, qcow2=True))) == 2
    else:
        with pytest.raises(Terminal, match="which no VM file names"):
            look(images, disk(top, qcow2=True))


async def test_what_images_build_upon_is_known_to_the_next_daemon(images: Path) -> None:
    top = overlay(images / "top.qcow2", images / "base.qcow2")
    file = images.parent / "image-chains.json"
    ChainStore(file).save(look(images, disk(top, qcow2=True)))

    links = ChainStore(file).load()

    assert {Path(it.image.path).name: it.base is None for it in links} == {
        "top.qcow2": False,
        "base.qcow2": True,
    }
    assert file.stat().st_mode & 0o777 == 0o600
    # Nothing new, so nothing is written.
    written = file.stat()
    ChainStore(file).save(look(images, disk(top, qcow2=True), links=links))
    assert os.path.samestat(written, file.stat())
    file.write_text("[{}]")
    with pytest.raises(Terminal, match="cannot be read"):
        ChainStore(file).load()


async def test_no_set_user_id_is_lent_or_given_back(images: Path) -> None:
    image = make(images / "a.raw")
    loans = await borrow(images, disk(image))
    image.chmod(0o4755)
    assert (await borrow(images, disk(image)))[0].before.mode == 0o755

    put_back([evolve(loans[0], before=evolve(loans[0].before, mode=0o6755))], {})

    assert whose(image) == (0, 0, 0o755)


@pytest.mark.parametrize(("access", "owner"), [(Access.OWN, (9, 9)), (Access.READ, (0, 9))])
async def test_what_has_another_owner_by_now_is_left_and_told(
    images: Path, access: Access, owner: tuple[int, int]
) -> None:
    image = make(images / "a.raw")
    loans = await borrow(images, disk(image, access))
    os.chown(image, *owner)

    failed, (left,) = put_back(loans, {})

    assert failed == {}
    assert f"belongs to user {owner[0]} and group {owner[1]} by now" in left
    assert whose(image)[:2] == owner


async def test_a_disk_whose_group_qemus_user_has_changed_is_put_back(images: Path) -> None:
    image = make(images / "a.raw")
    loans = await borrow(images, disk(image))
    os.chown(image, USER.uid, READERS)

    assert put_back(loans, {}) == ({}, [])
    assert whose(image) == (0, 0, 0o640)
