"""NVIDIA's tool is asked as its guide says, and believed only for what it then shows."""

from pathlib import Path

import pytest

from arcsup.errors import Terminal, Transient
from arcsup.host.mixed_sizes import enable_mixed_sizes

CARD = "0000:41:00.0"


def fake_smi(folder: Path, answer: str, *, state: str = "Disabled") -> str:
    """Return an nvidia-smi that shows a state and runs ``answer`` when it is to set it."""
    (folder / "state").write_text(state)
    tool = folder / "nvidia-smi"
    tool.write_text(
        f"""#!/bin/sh
echo "$@" >>{folder}/said
if [ "$1" = vgpu ]; then {answer}; fi
echo "    GPU Virtualization Mode"
echo "        Host VGPU Mode                    : SR-IOV"
echo "        vGPU Heterogeneous Mode           : $(cat {folder}/state)"
"""
    )
    tool.chmod(0o755)
    return str(tool)


async def test_the_mode_is_set_once(tmp_path: Path) -> None:
    smi = fake_smi(tmp_path, f"echo Enabled >{tmp_path}/state; exit 0")
    await enable_mixed_sizes(CARD, nvidia_smi=smi)
    await enable_mixed_sizes(CARD, nvidia_smi=smi)
    said = (tmp_path / "said").read_text().splitlines()
    assert said.count(f"vgpu -i {CARD} -shm 1") == 1


async def test_a_card_that_has_a_vgpu_is_tried_later(tmp_path: Path) -> None:
    smi = fake_smi(tmp_path, "echo In use by another client; exit 19")
    with pytest.raises(Transient, match=f"{CARD}: the mixed-size mode is Disabled: .* a vGPU"):
        await enable_mixed_sizes(CARD, nvidia_smi=smi)


@pytest.mark.parametrize("state", ["N/A", "Not Supported", "Disabled"])
async def test_a_tool_that_ends_well_and_does_nothing_is_not_believed(
    tmp_path: Path, state: str
) -> None:
    smi = fake_smi(tmp_path, "echo done; exit 0", state=state)
    with pytest.raises(Terminal, match=f"the mixed-size mode is {state}") as caught:
        await enable_mixed_sizes(CARD, nvidia_smi=smi)
    assert caught.value.hint == "nvidia-smi said: done"


async def test_a_tool_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Transient, match="could not be started"):
        await enable_mixed_sizes(CARD, nvidia_smi=str(tmp_path / "nvidia-smi"))
