"""Run a short-lived program of somebody else's: bounded in time, its own words kept."""

import subprocess
from collections.abc import Sequence

import trio

from arcsup.errors import Terminal, Transient


async def run_program(
    argv: Sequence[str], *, seconds: float, hint: str = "", pass_fds: Sequence[int] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output, whatever its exit code.

    Raises:
        Terminal: it is not there or cannot be run; ``hint`` says what to install.
        Transient: it took longer than ``seconds`` and was killed.
    """
    try:
        with trio.fail_after(seconds):
            return await trio.run_process(
                list(argv),
                stdin=b"",
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                pass_fds=tuple(pass_fds),
                deliver_cancel=kill_at_once,
            )
    except trio.TooSlowError:
        raise Transient(f"{argv[0]} did not finish within {seconds:g} s") from None
    except OSError as error:
        raise Terminal(f"{argv[0]} cannot be run: {error.strerror}", hint=hint) from error


def last_words(output: bytes) -> str:
    """Return the last line that a program wrote: where it says why it gave up."""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


async def kill_at_once(process: trio.Process) -> None:
    """End a program that is given up."""
    # Nothing that is run here has anything to tidy up, and SIGTERM can be ignored.
    process.kill()
