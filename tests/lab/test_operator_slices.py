"""Slices that somebody else made and an operator takes for a VM."""

from tests.lab.kernel import PARENTS, create, mdevs
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

SMALL = f"{TINY}gpus: [{{mdevType: mbochs-small}}]\n"


def test_a_foreign_mdev_is_adopted_used_and_removed_with_its_vm(daemon: Daemon, uuid: str) -> None:
    create(PARENTS / "mbochs", "mbochs-small", uuid)
    daemon.drop("one", f"{SMALL}autostart: false\n")
    daemon.wait_for("one", "stopped")

    daemon.client.post("/v1/gpus/adopt", {"id": uuid, "vm": "one"})
    daemon.call("start", "one", wait="240")

    assert [gpu["id"] for gpu in daemon.status("one")["gpus"]] == [uuid]
    assert mdevs() == {uuid}
    assert daemon.arcsup("gpu", "release", uuid).returncode == 6
    daemon.call("kill", "one", wait="240")
    daemon.until(lambda: not mdevs(), "the adopted mdev is given back as one of ours")
