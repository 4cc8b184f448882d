"""UEFI variables follow what the VM's file asks of the firmware, with real builds of OVMF."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcsup.errors import Terminal
from arcsup.model import Firmware
from arcsup.vm.firmware import find_firmware
from arcsup.vm.varstore import has_platform_key
from tests.qemu.daemon import TINY, Daemon, running_daemon

UEFI = TINY.replace("64", "256") + "firmware: uefi\nstop: {timeout: 100ms}\n"
SECURE = UEFI.replace("uefi", "uefi-secure")


def has_both_builds() -> bool:
    try:
        return all(find_firmware(it) for it in (Firmware.UEFI, Firmware.UEFI_SECURE))
    except Terminal:
        return False


pytestmark = pytest.mark.skipif(
    not has_both_builds(), reason="needs OVMF with and without Secure Boot keys"
)


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def run_until_the_firmware_has_written(daemon: Daemon) -> Path:
    """Run a VM that has no keys until its firmware has written to its variables; stop it."""
    store = daemon.state / "vars" / "one.fd"
    daemon.drop("one", UEFI)
    daemon.wait_for("one", "running")
    template = find_firmware(Firmware.UEFI)
    assert template is not None
    new = template.template.read_bytes()
    daemon.until(lambda: store.read_bytes() != new, "OVMF writes to its variables", seconds=240)
    daemon.call("stop", "one", wait="60")
    return store


def test_secure_boot_that_is_switched_on_is_enforced_and_the_old_variables_are_kept(
    daemon: Daemon,
) -> None:
    store = run_until_the_firmware_has_written(daemon)
    written = store.read_bytes()
    assert not has_platform_key(written)

    daemon.drop("one", SECURE)
    daemon.call("start", "one", wait="60")
    daemon.wait_for("one", "running")

    kept = store.with_name("one.fd.old-1")
    assert has_platform_key(store.read_bytes())
    assert kept.read_bytes() == written
    assert (kept.stat().st_uid, kept.stat().st_mode & 0o777) == (os.geteuid(), 0o600)
    told = daemon.wait_for_event("one", "variables-replaced")
    assert told["data"]["kept"] == str(kept)
    assert str(kept) in daemon.read_log()
    daemon.until(lambda: str(kept) in daemon.status("one")["reason"], "list tells of it")
    why = daemon.arcsup("why", "one")
    assert (why.returncode, "UefiVariables" in why.stdout) == (3, True)
    assert conditions(daemon)["SecureBoot"] == "Enforced"

    daemon.kill()
    daemon.start()
    daemon.until(lambda: str(kept) in daemon.status("one")["reason"], "the next daemon tells it")
    kept.unlink()
    daemon.until(lambda: daemon.status("one")["reason"] == "", "nobody needs them")
    assert daemon.arcsup("why", "one").returncode == 0


def test_secure_boot_without_keys_is_no_health(daemon: Daemon) -> None:
    template = find_firmware(Firmware.UEFI)
    assert template is not None
    daemon.drop("one", SECURE)
    daemon.wait_for("one", "running")
    daemon.call("stop", "one", wait="60")
    # As somebody does in the firmware's menu, who resets Secure Boot to setup mode.
    (daemon.state / "vars" / "one.fd").write_bytes(template.template.read_bytes())

    daemon.call("start", "one", wait="60")

    daemon.wait_for_event("one", "secure-boot-off")
    assert conditions(daemon)["SecureBoot"] == "NoPlatformKey"
    assert daemon.arcsup("why", "one").returncode == 3


@pytest.mark.skipif(
    not Path("/usr/share/OVMF/OVMF_VARS.fd").exists(), reason="needs a build of another size"
)
def test_variables_of_another_size_are_kept_and_not_erased_by_the_firmware(
    daemon: Daemon,
) -> None:
    store = daemon.state / "vars" / "one.fd"
    store.parent.mkdir(mode=0o700)
    old = Path("/usr/share/OVMF/OVMF_VARS.fd").read_bytes()
    store.write_bytes(old)

    daemon.drop("one", UEFI)
    daemon.wait_for("one", "running")

    assert "131072 bytes" in daemon.wait_for_event("one", "variables-replaced")["message"]
    assert store.with_name("one.fd.old-1").read_bytes() == old
    assert store.stat().st_size == 540672


def conditions(daemon: Daemon) -> dict[str, str]:
    return {it["type"]: it["reason"] for it in daemon.status("one")["conditions"]}
