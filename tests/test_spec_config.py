from pathlib import Path

import pytest

from arcsup.devices import VfQuota
from arcsup.errors import SpecError
from arcsup.model import MiB, Seconds
from arcsup.spec.config import (
    Config,
    GpuPolicy,
    Isolation,
    LogLevel,
    OnExit,
    Placement,
    UsbPolicy,
    config_to_native,
    load_config,
    read_config,
)

FILE = Path("arcsup.yaml")


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "arcsup.yaml") == Config()


@pytest.mark.parametrize("text", ["", "# vmDir: /srv/vms\n", "---\n"])
def test_a_file_in_which_all_is_commented_out_means_the_defaults(text: str) -> None:
    assert read_config(text, Path("arcsup.yaml")) == Config()


def test_every_key_is_read(tmp_path: Path) -> None:
    file = tmp_path / "arcsup.yaml"
    file.write_text(
        "vmDir: /srv/vms\nruntimeDir: /run/x\nstateDir: /srv/state\nlogDir: /srv/log\n"
        "sysfsRoot: /tmp/sys\ngroup: kvm\nviewer: desktop\nonExit: stop\n"
        "resync: 5s\nlogLevel: debug\nstartLimit: 4\nplacement: spread\n"
        "monitoringGroup: adm\nuser: qemu\nisolation: per-vm\nimageDirs: [/srv/iso]\n"
        "iommufd: false\n"
        "gpus:\n  - {match: 0000:C1:00.0, exclude: true}\n"
        "  - {match: '*', vfs: 8, mixedSizes: true}\n"
        "  - {match: 8086, vfQuota: {vRam: 2GiB, execQuantum: 20ms, preemptTimeout: 1s}}\n"
        "usb:\n  - {match: 046D:c52b, exclude: true}\n  - {match: 1-2.3, force: true}\n"
        "  - {match: 0781}\n"
    )

    assert load_config(file) == Config(
        Path("/srv/vms"),
        Path("/run/x"),
        Path("/srv/state"),
        Path("/srv/log"),
        Path("/tmp/sys"),
        "kvm",
        "desktop",
        OnExit.STOP,
        Seconds(5.0),
        LogLevel.DEBUG,
        4,
        Placement.SPREAD,
        (
            GpuPolicy("0000:c1:00.0", exclude=True),
            GpuPolicy("*", vfs=8, mixed_sizes=True),
            GpuPolicy("8086", vf_quota=VfQuota(MiB(2048), 20, 1_000_000)),
        ),
        "adm",
        "qemu",
        Isolation.PER_VM,
        (Path("/srv/iso"),),
        iommufd=False,
        usb=(
            UsbPolicy("046d:c52b", exclude=True),
            UsbPolicy("1-2.3", force=True),
            UsbPolicy("0781"),
        ),
    )


def test_a_configuration_is_written_in_the_files_own_keys() -> None:
    assert config_to_native(Config()) == {
        "isolation": "shared",
        "imageDirs": [],
        "iommufd": True,
        "onExit": "leave",
        "resync": "30s",
        "logLevel": "info",
        "startLimit": "auto",
        "placement": "pack",
        "gpus": [],
        "usb": [],
    }


@pytest.mark.parametrize("match", ["1-", "1-0", "0-1", "1-2:1.0", "usb1", "046d:c52b:1", "''"])
def test_a_usb_device_that_cannot_be_is_a_fault(match: str) -> None:
    with pytest.raises(SpecError, match=r"usb\[0\].match: .* expected \*, ids such as 046d:c52b"):
        read_config(f"usb: [{{match: {match}}}]\n", FILE)


def test_all_faults_are_told_at_once() -> None:
    text = (
        "vmdir: /x\nlogDir: log\nresync: 0\nonExit: die\ngpus: [{vfs: 1}, {match: 10de:2230:1}]\n"
    )
    with pytest.raises(SpecError) as caught:
        read_config(text, FILE)

    assert caught.value.message.splitlines() == [
        "arcsup.yaml:1:1: vmdir: unknown key, did you mean vmDir?",
        "arcsup.yaml:2:9: logDir: 'log': expected an absolute path",
        "arcsup.yaml:3:9: resync: the number '0': expected at least 1s",
        "arcsup.yaml:4:9: onExit: expected leave or stop, got 'die'",
        "arcsup.yaml:5:8: gpus[0].match: is missing",
        (
            "arcsup.yaml:5:26: gpus[1].match: '10de:2230:1': expected *, a PCI address, or ids "
            "such as 10de:2230"
        ),
    ]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_quotas_are_written_as_they_are_read() -> None:
    text = "gpus: [{match: 8086, vfQuota: {vRam: 2GiB, execQuantum: 20ms}}]\n"

    written = config_to_native(read_config(text, FILE))["gpus"]

    assert isinstance(written, list)
    (entry,) = written
    assert isinstance(entry, dict)
    quota = entry["vfQuota"]
    assert isinstance(quota, dict)
    assert (quota["vRam"], quota["execQuantum"], quota.get("preemptTimeout")) == (
        "2GiB",
        "20ms",
        None,
    )


def test_a_quota_with_a_fault_is_told() -> None:
    with pytest.raises(SpecError, match=r"gpus\[0\].vfQuota.execQuantum"):
        read_config("gpus: [{match: 8086, vfQuota: {execQuantum: soon}}]\n", FILE)


def test_a_card_without_quotas_is_written_without_them() -> None:
    written = config_to_native(read_config("gpus: [{match: 8086, vfs: 2}]\n", FILE))["gpus"]

    assert written == [{"match": "8086", "exclude": False, "vfs": 2, "mixedSizes": False}]
