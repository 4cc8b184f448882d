"""KVM counts only when a guest ran; what a trial showed is kept for this boot."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from arcsup.errors import Terminal
from arcsup.model import Accel
from arcsup.vm import accel
from arcsup.vm.accel import find_accel, trial_rom

RUNS = "#!/bin/sh\necho x >> {log}\nexit 85\n"
REFUSES = "#!/bin/sh\necho x >> {log}\necho 'failed to initialize kvm: Not permitted' >&2; exit 1\n"
HANGS = "#!/bin/sh\necho x >> {log}\nexec sleep 600\n"


def make_qemu(tmp_path: Path, text: str) -> Path:
    binary = tmp_path / "qemu"
    binary.write_text(text.format(log=tmp_path / "log"))
    binary.chmod(0o755)
    return binary


def make_device(tmp_path: Path) -> Path:
    device = tmp_path / "kvm"
    device.touch()
    return device


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a daemon's runtime directory."""
    run = tmp_path / "run"
    run.mkdir()
    return run


async def test_kvm_is_tried_once_for_all_who_ask_at_the_same_time(
    tmp_path: Path, run: Path
) -> None:
    qemu, device = make_qemu(tmp_path, RUNS), make_device(tmp_path)
    found = []

    async def ask() -> None:
        found.append(await find_accel(Accel.AUTO, qemu, run, "boot", device))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)

    assert found == ["kvm"] * 5
    assert (tmp_path / "log").read_text() == "x\n"


async def test_another_boot_tries_again(tmp_path: Path, run: Path) -> None:
    qemu, device = make_qemu(tmp_path, RUNS), make_device(tmp_path)
    for boot in ("one", "two", "two"):
        await find_accel(Accel.AUTO, qemu, run, boot, device)

    assert (tmp_path / "log").read_text() == "x\nx\n"


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"boot_id": "boot", "surprise": 1}'])
async def test_a_damaged_answer_is_found_anew(tmp_path: Path, run: Path, damaged: str) -> None:
    qemu, device = make_qemu(tmp_path, RUNS), make_device(tmp_path)
    await find_accel(Accel.AUTO, qemu, run, "boot", device)
    (file,) = run.iterdir()
    assert json.loads(file.read_text())["works"] is True
    file.write_text(damaged)

    assert await find_accel(Accel.AUTO, qemu, run, "boot", device) == "kvm"


async def test_a_refusing_kvm_falls_back_and_tells_why_when_demanded(
    tmp_path: Path, run: Path
) -> None:
    qemu, device = make_qemu(tmp_path, REFUSES), make_device(tmp_path)

    assert await find_accel(Accel.AUTO, qemu, run, "boot", device) == "tcg"
    with pytest.raises(Terminal, match="failed to initialize kvm: Not permitted"):
        await find_accel(Accel.KVM, qemu, run, "boot", device)


async def test_a_hanging_guest_is_killed_at_its_deadline(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "SECONDS_TO_RUN", 0.2)
    qemu, device = make_qemu(tmp_path, HANGS), make_device(tmp_path)
    with trio.fail_after(10), pytest.raises(Terminal, match=r"did not run within 0\.2 s"):
        await find_accel(Accel.KVM, qemu, run, "boot", device)


@pytest.mark.parametrize(("tcg", "trials"), [("exit 85", 1), ("exec sleep 600", 2)])
async def test_a_failure_is_remembered_only_where_guests_run_at_all(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, tcg: str, trials: int
) -> None:
    monkeypatch.setattr(accel, "SECONDS_TO_RUN", 0.3)
    script = f"#!/bin/sh\ncase $* in *accel=tcg*) {tcg} ;; esac\necho x >> {{log}}\nexit 1\n"
    qemu, device = make_qemu(tmp_path, script), make_device(tmp_path)
    for _ in range(2):
        assert await find_accel(Accel.AUTO, qemu, run, "boot", device) == "tcg"

    assert (tmp_path / "log").read_text() == "x\n" * trials


async def test_without_the_device_nothing_is_tried_or_remembered(tmp_path: Path, run: Path) -> None:
    qemu = make_qemu(tmp_path, RUNS)

    assert await find_accel(Accel.AUTO, qemu, run, "b", tmp_path / "none") == "tcg"
    assert not (tmp_path / "log").exists()
    assert await find_accel(Accel.AUTO, qemu, run, "b", make_device(tmp_path)) == "kvm"


async def test_a_runtime_directory_is_the_daemons_to_make(tmp_path: Path) -> None:
    qemu, device = make_qemu(tmp_path, RUNS), make_device(tmp_path)

    assert await find_accel(Accel.AUTO, qemu, tmp_path / "run", "boot", device) == "kvm"
    assert not (tmp_path / "run").exists()


async def test_tcg_needs_no_trial(tmp_path: Path) -> None:
    assert await find_accel(Accel.TCG, Path("/nowhere"), tmp_path, "boot") == "tcg"


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="needs binutils")
def test_the_trial_guest_is_its_assembled_source(tmp_path: Path) -> None:
    source = Path(accel.__file__).with_name("trial_guest.S")
    made, guest = tmp_path / "guest.o", tmp_path / "guest"
    link = ["ld", "-m", "elf_x86_64", "-Ttext=0xfffffe00", "-e", "0xfffffe00"]
    subprocess.run(["as", "--64", source, "-o", made], check=True)
    subprocess.run([*link, "--oformat", "binary", made, "-o", guest], check=True)

    assert trial_rom() == guest.read_bytes().rjust(65536, b"\0")
