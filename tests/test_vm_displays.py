"""Where a guest's sound goes, by its file and by what this QEMU has; and who may see it."""

import os
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.model import Audio, Display, DisplayType
from arcsup.vm.displays import audio_args, check_password
from tests.vm_samples import capabilities_of, make_vm


@pytest.mark.parametrize(
    ("audio", "display", "audiodevs", "driver"),
    [
        (Audio.AUTO, DisplayType.SPICE, {"spice", "pipewire", "pa"}, "spice"),
        (Audio.AUTO, DisplayType.VNC, {"spice", "pipewire", "pa"}, ""),
        (Audio.AUTO, DisplayType.NONE, set(), ""),
        (Audio.SPICE, DisplayType.SPICE, {"spice"}, "spice"),
        (Audio.NONE, DisplayType.SPICE, {"spice"}, ""),
        (Audio.SCREAM, DisplayType.SPICE, {"spice"}, ""),
        # QEMU speaks to PipeWire itself since 8.1; before, through its PulseAudio server.
        (Audio.PIPEWIRE, DisplayType.SPICE, {"spice", "pipewire", "pa"}, "pipewire"),
        (Audio.PIPEWIRE, DisplayType.NONE, {"spice", "pa"}, "pa"),
    ],
)
def test_the_sound_takes_the_way_that_is_asked_for_and_there(
    audio: Audio, display: DisplayType, audiodevs: set[str], driver: str
) -> None:
    vm = evolve(make_vm("a"), audio=audio, display=Display(display))
    known = evolve(capabilities_of("7.2"), audiodevs=frozenset(audiodevs))
    argv = audio_args(vm, known)

    assert argv[:2] == (("-audiodev", f"{driver},id=audio") if driver else ())


@pytest.mark.parametrize("audio", [Audio.PIPEWIRE, Audio.SPICE])
def test_a_way_that_this_qemu_has_not_is_said_with_what_has_it(audio: Audio) -> None:
    vm = evolve(make_vm("a"), audio=audio, display=Display(DisplayType.SPICE))
    known = evolve(capabilities_of("7.2"), audiodevs=frozenset[str]())

    with pytest.raises(Terminal, match=f"no sound driver for {audio}") as caught:
        audio_args(vm, known)
    assert "install qemu-system" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "good"),
    [(b"tell-me", True), (b"", False), (b"tell-me\n", False), (b"x" * 61, False)],
)
def test_a_password_that_no_client_could_send_is_refused(
    tmp_path: Path, content: bytes, good: bool
) -> None:
    (tmp_path / "secret").write_bytes(content)
    display = Display(DisplayType.VNC, port=5901, password_file="secret")

    if good:
        check_password(display, tmp_path)
    else:
        with pytest.raises(Terminal, match="is empty, too long, or ends in a newline") as caught:
            check_password(display, tmp_path)
        assert "tell-me" not in str(caught.value)
    with pytest.raises(Terminal, match="No such file"):
        check_password(display, tmp_path / "none")


def test_nobody_waits_for_a_password_from_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret")
    display = Display(DisplayType.VNC, port=5901, password_file="secret")

    with pytest.raises(Terminal, match="secret: is a FIFO, expected a regular file"):
        check_password(display, tmp_path)
