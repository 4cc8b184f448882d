"""A picture of a guest's screen comes from its QEMU, and from no file that its user has made."""

import os
import stat
from pathlib import Path

from tests.qemu.daemon import TINY, running_daemon
from tests.security.other_user import act_as, needs_root

pytestmark = needs_root


def test_what_qemus_user_puts_in_its_folder_is_no_picture_and_in_nobodys_way(
    short_dir: Path,
) -> None:
    with running_daemon(short_dir) as daemon:
        daemon.drop("one", TINY + "display: vnc\n")
        daemon.wait_for("one", "running")
        folder = daemon.run / ".qemu" / "one"
        user = folder.stat().st_uid

        def make_traps() -> None:
            for number in range(64):
                (folder / f"screenshot-{number}.png").mkdir()

        act_as(user, make_traps)
        before = sorted(os.listdir(folder))
        picture = short_dir / "one.png"
        for _ in range(2):
            taken = daemon.arcsup("screenshot", "one", str(picture))
            assert (taken.returncode, taken.stderr) == (0, "")

        assert picture.read_bytes().startswith(b"\x89PNG\r\n")
        assert stat.S_ISREG(picture.lstat().st_mode)
        assert sorted(os.listdir(folder)) == before
        sets = daemon.arcsup("qmp", "one", "query-fdsets").stdout
        assert "screenshot" not in sets
