"""Which drivers are to have GPUs: nouveau out of the way, i915's ways of sharing, AMD's GIM.

Sources: modprobe.d(5), Documentation/admin-guide/kernel-parameters.txt (i915), the GVT-g setup
guide (enable_gvt, enable_guc), README of i915-sriov-dkms (max_vfs), AMD's GIM documentation.
"""

from collections.abc import Iterator

from arcsup.devices import Card
from arcsup.host.inventory import observe_host
from arcsup.setup.checks.kernel import ModuleState, find_module, is_loadable
from arcsup.setup.choices import Choices, GpuSharing
from arcsup.setup.gpu_kinds import has_gvtg, read_parameter
from arcsup.setup.host import Host
from arcsup.setup.steps import SetupPlan, create_file, find_initramfs_refresh
from arcsup.setup.vendor import find_packages

NOUVEAU_FILE = "/etc/modprobe.d/arcsup-nouveau.conf"
AMDGPU_FILE = "/etc/modprobe.d/arcsup-amdgpu.conf"
I915_FILE = "/etc/modprobe.d/arcsup-i915.conf"

I915_OPTIONS = {
    GpuSharing.GVT_G: "options i915 enable_gvt=1 enable_guc=0\n",
    GpuSharing.SRIOV: "options i915 enable_guc=3 max_vfs=7\nblacklist xe\n",
}


def plan_drivers(host: Host, choices: Choices) -> SetupPlan:
    """Return what makes the right drivers take the GPUs at the next boot."""
    cards = observe_host(host.sysfs).cards
    plan = SetupPlan()
    if _wants_nvidia(host):
        text = "blacklist nouveau\noptions nouveau modeset=0\n"
        plan += _plan_blacklist(host, cards, "nouveau", NOUVEAU_FILE, text)
    if is_loadable(host, "gim"):
        plan += _plan_blacklist(host, cards, "amdgpu", AMDGPU_FILE, "blacklist amdgpu\n")
    return plan + _plan_i915(host, cards, choices)


def list_modules(host: Host, choices: Choices) -> Iterator[str]:
    """Yield the modules that GPUs need at boot beside those that every device needs."""
    if choices.gpu_sharing is GpuSharing.GVT_G and is_loadable(host, "kvmgt"):
        yield "kvmgt"
    if is_loadable(host, "gim"):
        yield "gim"


def _wants_nvidia(host: Host) -> bool:
    installed = find_module(host, "nvidia_vgpu_vfio") is not ModuleState.MISSING
    return installed or any(package.is_nvidia for package in find_packages(host))


def _plan_blacklist(
    host: Host, cards: tuple[Card, ...], driver: str, path: str, content: str
) -> SetupPlan:
    """Plan that ``driver`` is not loaded any more, unless the host's picture is its work."""
    drawing = [card for card in cards if card.driver == driver and card.in_use_by_host]
    if drawing:
        where = ", ".join(f"{card.address} ({card.in_use_by_host})" for card in drawing)
        note = f"{driver} stays: it draws the host's screen on {where}; move that to another card"
        return SetupPlan(notes=(note,))
    if find_module(host, driver) is ModuleState.MISSING:
        return SetupPlan()
    # Not present yet, or present and the reboot still to come.
    loaded = (host.sysfs / "module" / driver).exists()
    actions = create_file(host, path, content, find_initramfs_refresh(host))
    notes = (f"{driver} is loaded until the next boot: reboot",) if loaded else ()
    return SetupPlan(actions, notes, reboot=loaded)


def _plan_i915(host: Host, cards: tuple[Card, ...], choices: Choices) -> SetupPlan:
    sharing = choices.gpu_sharing
    if sharing is None:
        return SetupPlan()
    why = _find_objection(host, cards, sharing)
    if why:
        return SetupPlan(notes=(f"--gpu-sharing {sharing} changes nothing: {why}",))
    if _is_on(host, sharing):
        return SetupPlan()
    actions = create_file(host, I915_FILE, I915_OPTIONS[sharing], find_initramfs_refresh(host))
    if not actions and I915_OPTIONS[sharing] not in host.read(I915_FILE):
        note = f"{I915_FILE} says something else than --gpu-sharing {sharing}: remove it first"
        return SetupPlan(notes=(note,))
    return SetupPlan(actions, ("i915 takes its options at the next boot: reboot",), reboot=True)


def _find_objection(host: Host, cards: tuple[Card, ...], sharing: GpuSharing) -> str:
    if sharing is GpuSharing.GVT_G:
        if not any(has_gvtg(card) for card in cards):
            return "no card here has GVT-g (Intel, Broadwell to Comet Lake)"
        if not is_loadable(host, "kvmgt"):
            return "this kernel has no module kvmgt"
    elif any(card.driver == "xe" and card.vfs_total for card in cards):
        return "driver xe makes virtual functions without options"
    elif not read_parameter(host, "i915", "max_vfs"):
        return "this i915 makes no virtual functions (install i915-sriov-dkms, or use driver xe)"
    return ""


def _is_on(host: Host, sharing: GpuSharing) -> bool:
    if sharing is GpuSharing.GVT_G:
        return read_parameter(host, "i915", "enable_gvt") in {"Y", "1"}
    return read_parameter(host, "i915", "max_vfs") not in {"", "0"}
