"""Neither the daemon nor what it starts leaves set-user-ID programs or device nodes anywhere."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from arcsup.host.privileged_files import forbid_privileged_files
from tests.qemu.daemon import TINY, running_daemon
from tests.security.other_user import needs_root

pytestmark = needs_root

DISK = os.makedev(254, 0)


def errno_under_the_filter(deed: Callable[[], object]) -> int:
    """Do something in a child that has the filter; return the errno that it ends with, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            forbid_privileged_files()
            deed()
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(255)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    "mode", [0o4755, 0o2755, 0o6700], ids=["set-user-ID", "set-group-ID", "both"]
)
def test_no_program_is_given_or_made_with_somebody_elses_rights(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "file"
    file.touch()

    assert errno_under_the_filter(lambda: file.chmod(mode)) == errno.EPERM
    made = os.O_CREAT | os.O_WRONLY
    assert errno_under_the_filter(lambda: os.open(tmp_path / "new", made, mode)) == errno.EPERM
    assert not (tmp_path / "new").exists()
    # Without O_CREAT nobody looks at a mode, and what is in its place says nothing.
    assert errno_under_the_filter(lambda: os.open(file, os.O_WRONLY, mode)) == 0
    command = ["chmod", f"{mode:o}", str(file)]
    assert errno_under_the_filter(lambda: os.execvp("chmod", command)) != 0
    assert stat.S_IMODE(file.stat().st_mode) & 0o6000 == 0


@pytest.mark.parametrize("kind", [stat.S_IFBLK, stat.S_IFCHR])
def test_no_device_node_is_made(tmp_path: Path, kind: int) -> None:
    node = tmp_path / "node"

    assert errno_under_the_filter(lambda: os.mknod(node, kind | 0o666, DISK)) == errno.EPERM
    assert errno_under_the_filter(lambda: os.mknod(node, stat.S_IFIFO | 0o600)) == 0


def test_a_share_that_others_can_pass_is_served_by_a_program_that_makes_no_such_files(
    short_dir: Path,
) -> None:
    folder = short_dir / "state/images/shared"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    with running_daemon(short_dir) as daemon:
        daemon.drop("one", f"{TINY}shares: [{{path: {folder}, tag: work}}]\n")
        daemon.wait_for("one", "running")
        processes = daemon.records()["one"]["launch"]["processes"]
        [pid] = [it["identity"]["pid"] for it in processes if it["role"].startswith("virtiofs")]
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Seccomp:\t2" in status
        filters = int(status.partition("Seccomp_filters:\t")[2].partition("\n")[0])
        outside = int(
            Path("/proc/self/status").read_text().partition("Seccomp_filters:\t")[2].split()[0]
        )
        assert filters >= outside + 1
