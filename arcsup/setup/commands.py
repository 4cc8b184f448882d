"""Programs of the host that setup runs: of this one, or in a tree with chroot(1)."""

import os
import subprocess
from collections.abc import Sequence

from arcsup.errors import Terminal
from arcsup.setup.host import Host

STDERR = 2
"""The descriptor; sys.stderr may be something else."""


def run_command(host: Host, argv: Sequence[str], hint: str = "") -> None:
    """Run a program to its end; what it says goes to stderr. Raises Terminal when it fails."""
    command = _in_root(host, argv)
    # Whoever reads our JSON must not read apt's words.
    done = _run(command, stdout=STDERR)
    if done.returncode != 0:
        raise Terminal(
            f"{' '.join(argv)} ended with {done.returncode}",
            hint or "its own words are above",
        )


def ask_command(host: Host, argv: Sequence[str], patience: float | None = None) -> str | None:
    """Return what a program that only looks writes, None when it says no.

    Raises Terminal when it cannot be run, or takes longer than ``patience`` seconds.
    """
    command = _in_root(host, argv)
    done = _run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, patience=patience)
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _in_root(host: Host, argv: Sequence[str]) -> list[str]:
    return [*argv] if host.is_this else ["chroot", str(host.root), *argv]


def _run(
    argv: Sequence[str], *, stdout: int, stderr: int | None = None, patience: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    # The words of package managers are read, so they must be the untranslated ones.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            check=False,
            timeout=patience,
        )
    except subprocess.TimeoutExpired as error:
        raise Terminal(f"{' '.join(argv)} did not end within {patience:g} s") from error
    except OSError as error:
        raise Terminal(f"{argv[0]} cannot be run: {error.strerror}") from error
