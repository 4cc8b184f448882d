"""Images that a program of QEMU's has open."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_for_writing(image: Path) -> Iterator[int]:
    """Have a program of QEMU's write to an image for the length of the block; yield its pid."""
    with _open(image, "write 0 512", "wrote") as pid:
        yield pid


@contextmanager
def open_for_reading(image: Path) -> Iterator[int]:
    """Have a program of QEMU's read an image, and share it with no writer."""
    with _open(image, "read 0 512", "read", "-r") as pid:
        yield pid


@contextmanager
def _open(image: Path, command: str, done: str, *options: str) -> Iterator[int]:
    argv = ["qemu-io", *options, "-f", "qcow2", str(image)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    # An answer to a first command shows that the image is open.
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    assert done in process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.communicate("quit\n")
