"""Where a guest's sound goes, by its file and by what this QEMU has."""

import pytest
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.model import Audio, Display, DisplayType
from arcsup.vm.displays import audio_args
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
