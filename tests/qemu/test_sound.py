"""A Scream receiver beside a VM: started, restarted, adopted, ended; and a VM without one."""

import os
import pwd
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arcsup.vm.process import read_start_time
from tests.qemu.daemon import TINY, Daemon, end

SCREAM = TINY + "audio: scream\n"


@contextmanager
def daemon_with_receiver(top: Path, script: str, *options: str) -> Iterator[Daemon]:
    """Yield a daemon that finds ``script`` as the receiver: what it plays is listed in a file."""
    programs = top / "bin"
    programs.mkdir()
    if script:
        (programs / "scream").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "scream").chmod(0o755)
    daemon = Daemon(top, options, environment={"PATH": f"{programs}:{os.environ['PATH']}"})
    daemon.start()
    try:
        yield daemon
        # What a VM shares is taken away at its end; one that is killed with the daemon leaves it.
        daemon.call("kill", "one", wait="60")
    finally:
        end(daemon)


def note_and_stay(top: Path) -> str:
    """Return a receiver that lists its pid, its user and its arguments, and stays."""
    line = '"$$ $(id -u) ${XDG_RUNTIME_DIR:-} $*"'
    return f"echo {line} >>{top}/played\nexec tail -f {top}/bin/scream"


def read_played(top: Path) -> list[list[str]]:
    file = top / "played"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def test_a_receiver_is_kept_beside_the_vm_and_ends_with_it(short_dir: Path) -> None:
    with daemon_with_receiver(short_dir, note_and_stay(short_dir)) as daemon:
        daemon.drop("one", SCREAM)
        uuid = daemon.wait_for("one", "running")["uuid"]
        daemon.until(lambda: read_played(short_dir), "the receiver runs")
        first = int(read_played(short_dir)[0][0])
        assert read_played(short_dir)[0][-2:] == ["-m", f"/dev/shm/kvmsr-{uuid}"]

        os.kill(first, signal.SIGKILL)
        daemon.until(lambda: len(read_played(short_dir)) == 2, "another one was started")
        second = int(read_played(short_dir)[1][0])
        assert daemon.wait_for_event("one", "sound-ended")["message"].startswith(
            "the Scream receiver ended with signal SIGKILL"
        )

        # The next daemon finds the one that runs.
        daemon.kill()
        daemon.start()
        daemon.wait_for_event("one", "adopted")
        assert read_start_time(second) is not None
        daemon.call("kill", "one", wait="60")
        assert read_start_time(second) is None
        assert len(read_played(short_dir)) == 2


def test_without_a_receiver_the_vm_runs_and_says_so_once(short_dir: Path) -> None:
    with daemon_with_receiver(short_dir, "") as daemon:
        daemon.drop("one", SCREAM)
        daemon.wait_for("one", "running")
        daemon.wait_for_event("one", "no-sound")
        status = daemon.status("one")

        assert [event["kind"] for event in status["events"]].count("no-sound") == 1
        (sound,) = [it for it in status["conditions"] if it["type"] == "SoundPlays"]
        assert "no Scream receiver" in sound["message"]
        assert status["state"] == "running"


def test_a_receiver_that_cannot_play_is_tried_less_and_less_often(short_dir: Path) -> None:
    with daemon_with_receiver(short_dir, f"echo $$ >>{short_dir}/played; exit 1") as daemon:
        daemon.drop("one", SCREAM)
        daemon.wait_for("one", "running")
        daemon.until(lambda: len(read_played(short_dir)) == 3, "it was tried three times")

        assert "exit code 1" in daemon.wait_for_event("one", "sound-ended")["message"]
        assert daemon.state_of("one") == "running"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_receiver_is_the_viewers_program(short_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    short_dir.chmod(0o755)
    (short_dir / "played").touch()
    os.chown(short_dir / "played", nobody, -1)
    config = short_dir / "arcsup.yaml"
    config.write_text("viewer: nobody\n")
    script = note_and_stay(short_dir)
    with daemon_with_receiver(short_dir, script, "--config", str(config)) as daemon:
        daemon.drop("one", SCREAM)
        daemon.wait_for("one", "running")
        daemon.until(lambda: read_played(short_dir), "the receiver runs")

        assert read_played(short_dir)[0][1:3] == [str(nobody), f"/run/user/{nobody}"]
