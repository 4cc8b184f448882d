"""Real viewers on a screen that nobody sees: found by `arcsup view`, connected, and ended."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arcsup.control.client import vm_path
from tests.qemu.daemon import TINY, Daemon, running_daemon


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    """Yield the name of an X display without a monitor."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb (Debian: xvfb)")
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1024x768x24", "-nolisten", "tcp"],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    with open(reader) as numbers:
        yield f":{numbers.readline().strip()}"
    server.terminate()
    server.wait()


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


@contextmanager
def viewing(
    daemon: Daemon, name: str, *prefix: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `arcsup view` for as long as the block; what it says goes into the folder's view.log."""
    with (
        (daemon.top / "view.log").open("wb") as log,
        subprocess.Popen(
            [*prefix, sys.executable, "-m", "arcsup", "--run", str(daemon.run), "view", name],
            env={**os.environ, "HOME": str(daemon.top), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as view,
    ):
        try:
            yield view
        finally:
            view.terminate()


def ask(daemon: Daemon, name: str, command: str) -> dict[str, Any]:
    answer = daemon.client.post(vm_path(name, "qmp"), {"execute": command})
    found: dict[str, Any] = answer["return"]
    return found


def until_connected(
    daemon: Daemon, view: subprocess.Popen[bytes], seen: Callable[[], bool]
) -> None:
    def connected() -> bool:
        assert view.poll() is None, (daemon.top / "view.log").read_text()
        return seen()

    daemon.until(connected, "the client is connected")


@pytest.mark.skipif(shutil.which("remote-viewer") is None, reason="needs virt-viewer")
def test_remote_viewer_connects_to_spice(daemon: Daemon, screen: str) -> None:
    daemon.drop("one", TINY + "display: spice\n")
    daemon.wait_for("one", "running")
    with viewing(daemon, "one", DISPLAY=screen) as view:
        until_connected(daemon, view, lambda: bool(ask(daemon, "one", "query-spice")["channels"]))
        daemon.call("kill", "one")

        assert view.wait(60) == 0


@pytest.mark.skipif(shutil.which("xtigervncviewer") is None, reason="needs tigervnc-viewer")
def test_tigervnc_connects_to_vnc(daemon: Daemon, screen: str) -> None:
    daemon.drop("one", TINY + "display: vnc\n")
    daemon.wait_for("one", "running")
    with viewing(daemon, "one", DISPLAY=screen) as view:
        until_connected(daemon, view, lambda: bool(ask(daemon, "one", "query-vnc")["clients"]))
        daemon.call("kill", "one")

        assert view.wait(60) == 0


def find_looking_glass() -> Path | None:
    """Return the client: the system's, else what contrib/dev/get-looking-glass fetched."""
    if (installed := shutil.which("looking-glass-client")) is not None:
        return Path(installed)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get("ARCSUP_CACHE") or home / "arcsup")
    fetched = cache / "looking-glass" / "looking-glass-client"
    return fetched if fetched.exists() else None


@pytest.fixture
def looking_glass(short_dir: Path) -> Iterator[Path]:
    """Yield the client, in a folder that everybody may enter: it refuses to run as root."""
    client = find_looking_glass()
    if client is None:
        pytest.skip("needs looking-glass-client; contrib/dev/get-looking-glass fetches it")
    if os.geteuid() != 0:
        yield client
        return
    short_dir.chmod(0o755)
    folder = short_dir / "looking-glass"
    folder.mkdir()
    subprocess.run(["mount", "--bind", client.parent, folder], check=True)
    try:
        yield folder / client.name
    finally:
        subprocess.run(["umount", folder], check=True)


def test_looking_glass_reads_the_frames_of_a_vm_as_its_viewer(
    short_dir: Path, screen: str, looking_glass: Path
) -> None:
    as_root = os.geteuid() == 0
    # So the system's daemon shows the VM to the user that is configured.
    prefix = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if as_root else []
    if subprocess.run([*prefix, "test", "-x", sys.executable], check=False).returncode != 0:
        pytest.skip("that user may not read this Python")
    home = short_dir / "home"
    home.mkdir()
    config = short_dir / "arcsup.yaml"
    if as_root:
        os.chown(home, pwd.getpwnam("nobody").pw_uid, -1)
        config.write_text("viewer: nobody\ngroup: nogroup\n")
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        daemon.drop("one", TINY + "display: spice\nlookingGlass: {width: 640, height: 480}\n")
        (frame,) = daemon.wait_for("one", "running")["viewing"]["frames"]
        own = {"HOME": str(home), "PULSE_RUNTIME_PATH": str(home / "pulse")}
        path = f"{looking_glass.parent}:{os.environ['PATH']}"
        with viewing(daemon, "one", *prefix, DISPLAY=screen, PATH=path, **own) as view:
            # It waits for the guest's host application, with the frames open and SPICE for keys.
            log = daemon.top / "view.log"
            until_connected(daemon, view, lambda: "Waiting for the host" in log.read_text())
            assert frame in log.read_text()
            until_connected(
                daemon, view, lambda: bool(ask(daemon, "one", "query-spice")["channels"])
            )
            daemon.call("kill", "one")

            assert view.wait(60) == 0, log.read_text()
    assert not Path(frame).exists()
