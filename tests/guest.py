"""The test guest: a real Linux that boots in 3 s under TCG and is driven over its console.

contrib/guest/build-guest makes it and says what it is; contrib/guest/init knows these options:
``arcsup.name=NAME``, ``arcsup.powerbutton=ignore``, ``arcsup.heartbeat``.
"""

import atexit
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
import trio

TOP = Path(__file__).parent.parent

CMDLINE = "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check tsc=reliable"
"""What boots the guest fastest. With ``panic=-1`` a guest that panicked resets at once."""

READY = "guest ready"
"""What the guest says on its console when its devices are set up and its shell comes up."""

BOOT_SECONDS = 60.0
"""How long to wait for READY: 3 s on an idle machine, many more when others use it too."""


@cache
def guest_files() -> tuple[Path, Path]:
    """Return the guest's kernel and initramfs; the first call on a machine builds them.

    They are where every user may read them, as the QEMUs of a daemon that is root are no root.
    """
    folder = tempfile.mkdtemp(prefix="arcguest", dir="/tmp")
    atexit.register(shutil.rmtree, folder)
    Path(folder).chmod(0o755)
    build = subprocess.run(
        [TOP / "contrib/guest/build-guest", folder], capture_output=True, text=True, check=False
    )
    if build.returncode != 0:
        pytest.fail(f"no test guest: {build.stderr.strip()}", pytrace=False)
    return Path(folder, "vmlinuz"), Path(folder, "initramfs.cpio.gz")


class Console:
    """A guest's serial console. Made by ``open_console``, which reads it all the time.

    A client that does not read slows its guest down to some characters a second: QEMU writes
    single bytes, of which less than 300 fit into a unix socket.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._commands = 0
        self._unread = ""
        self._closed = False
        self._news = trio.Event()
        self.text = ""

    async def read(self) -> None:
        """Take in what the guest says until the console closes."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for received in self._stream:
                # The console's line discipline sends carriage returns along.
                text = received.decode(errors="replace").replace("\r", "")
                self.text += text
                self._unread += text
                self._tell_news()
        self._closed = True
        self._tell_news()

    def _tell_news(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def wait_for(self, wanted: str, *, seconds: float = BOOT_SECONDS) -> str:
        """Wait for a text; return what came since the last call, up to and with it."""
        return (await self.wait_for_match(re.escape(wanted), seconds=seconds))[0]

    async def wait_for_match(
        self, pattern: str, *, seconds: float = BOOT_SECONDS
    ) -> tuple[str, re.Match[str]]:
        """As ``wait_for``, for a regular expression; AssertionError shows what came instead."""
        with trio.move_on_after(seconds):
            while (match := re.search(pattern, self._unread)) is None:
                assert not self._closed, f"the console closed before {pattern!r}:\n{self.text}"
                await self._news.wait()
            seen, self._unread = self._unread[: match.end()], self._unread[match.end() :]
            return seen, match
        raise AssertionError(f"no {pattern!r} on the console within {seconds} s:\n{self.text}")

    async def send(self, text: str) -> None:
        """Type a text; the guest's shell acts on a line at its newline."""
        await self._stream.send_all(text.encode())

    async def run(self, command: str, *, seconds: float = 30) -> str:
        """Run a command in the guest's shell; return its output. AssertionError if it fails."""
        self._commands += 1
        # The console echoes what is typed. The quotes keep the echo from looking like the marks.
        begin, end = f"<{self._commands}>", f"<{self._commands}:"
        await self.send(f"echo '<'{self._commands}'>'; {command}; echo '<'{self._commands}:$?'>'\n")
        await self.wait_for(f"{begin}\n", seconds=seconds)
        output, match = await self.wait_for_match(re.escape(end) + r"(\d+)>\n", seconds=seconds)
        output = output[: -len(match.group())]
        if match.group(1) != "0":
            raise AssertionError(f"{command}: exit status {match.group(1)}: {output}")
        return output


@asynccontextmanager
async def open_console(path: Path) -> AsyncIterator[Console]:
    """Connect to the unix socket of a guest's serial port."""
    async with await trio.open_unix_socket(path) as stream, trio.open_nursery() as nursery:
        console = Console(stream)
        nursery.start_soon(console.read)
        yield console
        nursery.cancel_scope.cancel()
