"""What a header of qcow2 says is read without any program; what makes no sense is refused."""

import io
import struct
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arcsup.errors import Terminal
from arcsup.vm.qcow2 import Header, place_of, read_header, read_snapshots
from arcsup.vm.qemu_img import observe_image


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
async def test_it_says_what_qemu_img_wrote(tmp_path: Path, compat: str) -> None:
    base, top = tmp_path / "b.raw", tmp_path / "top"
    base.write_bytes(bytes(4096))
    create = ("create", "-q", "-f", "qcow2", "-o", f"compat={compat}")
    qemu_img(*create, "-b", "b.raw", "-F", "raw", top, "3M")
    for name in ("one", "zwölf"):
        qemu_img("snapshot", "-q", "-c", name, top)

    with top.open("rb") as image:
        header = read_header("top", image)
    shown = await observe_image(top)

    assert header is not None
    assert (header.size, header.base, header.base_format) == (3 << 20, "b.raw", "raw")
    assert (shown.format, shown.virtual_size, shown.base) == ("qcow2", 3 << 20, base)
    assert shown.size == top.stat().st_blocks * 512
    assert [it.name for it in shown.snapshots] == ["one", "zwölf"]
    assert all(datetime.now(UTC) - it.at < timedelta(hours=1) for it in shown.snapshots)


async def test_it_says_of_an_image_that_stands_alone_that_it_has_no_base(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "1M")

    shown = await observe_image(tmp_path / "a")

    assert (shown.base, shown.base_format, shown.snapshots) == (None, "", ())


def test_what_is_no_file_stays_as_it_is_named() -> None:
    image = Path("/images/a")
    assert place_of(image, "b") == Path("/images/b")
    assert place_of(image, "/c") == Path("/c")
    assert place_of(image, "nbd://host/d") == Path("nbd://host/d")


def test_an_image_whose_data_is_elsewhere_is_refused() -> None:
    header = struct.pack(">4sI64xQ20xI", b"QFI\xfb", 3, 1 << 2, 104)
    with pytest.raises(Terminal, match="keeps its data in another file"):
        read_header("a", io.BytesIO(header))


FIELDS = st.binary(max_size=300)
MANY = struct.pack(">4sI8x4x4xQ28xIQQ20xI", b"QFI\xfb", 3, 512, 65536, 0, 0, 104)


@given(rest=FIELDS, version=st.sampled_from([2, 3]))
@example(rest=MANY[8:], version=3)
def test_any_bytes_are_a_header_or_refused(rest: bytes, version: int) -> None:
    image = io.BytesIO(struct.pack(">4sI", b"QFI\xfb", version) + rest)
    for read in (read_header, read_snapshots):
        with suppress(Terminal):
            found = read("a", image)
            assert found is None or isinstance(found, Header | tuple)
