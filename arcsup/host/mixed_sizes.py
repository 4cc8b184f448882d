"""NVIDIA's heterogeneous mode: vGPU types of several sizes on one card (since vGPU 17).

It is set after the card's virtual functions were made and before its first vGPU, and lasts until
the host boots or sriov-manage runs. Source: NVIDIA's Linux KVM vGPU user guide ("Configuring a GPU
for heterogeneous vGPU"), and what ``nvidia-smi -q`` prints.
"""

import re

from arcsup.errors import Terminal, Transient
from arcsup.host.writer import run_helper

_SECONDS = 60.0
_STATE = re.compile(r"^\s*vGPU Heterogeneous Mode\s*:\s*(.*?)\s*$", re.MULTILINE)
_IN_USE = 19
"""nvidia-smi's exit code for NVML_ERROR_IN_USE (nvml.h): the card has a vGPU already."""


async def enable_mixed_sizes(address: str, *, nvidia_smi: str = "nvidia-smi") -> None:
    """Let the card at a PCI address have vGPUs of several sizes, and look whether it does.

    Raises Terminal where the card or driver cannot, Transient while it has a vGPU or the tool
    is not there, Stuck where the driver does not answer.
    """
    if await _observe(address, nvidia_smi) == "Enabled":
        return
    command = [nvidia_smi, "vgpu", "-i", address, "-shm", "1"]
    end = await run_helper(command, seconds=_SECONDS, what=f"{nvidia_smi} {address}")
    state = await _observe(address, nvidia_smi)
    if state == "Enabled":
        return
    said = end.output.strip().splitlines()
    what = f"{address}: the mixed-size mode is {state or 'unknown'}"
    hint = f"nvidia-smi said: {said[-1]}" if said else ""
    if end.code == _IN_USE:
        raise Transient(f"{what}: the card has a vGPU", "it can be set while there is none")
    raise Terminal(what, hint or "it takes NVIDIA vGPU 17 and a card that can do it")


async def _observe(address: str, nvidia_smi: str) -> str:
    """Return the mode as the tool words it: Enabled, Disabled, N/A; "" where it does not tell."""
    command = [nvidia_smi, "-q", "-i", address]
    end = await run_helper(command, seconds=_SECONDS, what=f"{nvidia_smi} {address}")
    match = _STATE.search(end.output)
    return match[1] if match else ""
