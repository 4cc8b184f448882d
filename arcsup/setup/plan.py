"""What a host lacks to run VMs, as actions: only what is missing, nothing when all is there."""

import stat
from collections.abc import Iterator
from pathlib import Path

from arcsup.setup.actions import (
    Action,
    Command,
    CreateDirectory,
    CreateFile,
    CreateGroup,
    CreateUser,
    ReplaceFile,
    RunCommand,
    SecureDirectory,
)
from arcsup.setup.boot import REBOOT, plan_parameters
from arcsup.setup.checks.kernel import WANTED_MODULES, is_loadable
from arcsup.setup.choices import Choices
from arcsup.setup.drivers import list_modules, plan_drivers
from arcsup.setup.groups import find_group, has_user
from arcsup.setup.host import Host, read_text
from arcsup.setup.iommu import find_parameters
from arcsup.setup.packages import find_manager, plan_packages
from arcsup.setup.resources import read_resource
from arcsup.setup.resume import plan_resume
from arcsup.setup.steps import SetupPlan, create_directories
from arcsup.setup.tuning import plan_tuning
from arcsup.setup.vendor import plan_vendor
from arcsup.spec.config import load_config

GROUP = "arcsup"
"""Its members may use the control socket."""

QEMU_USER = "arcsup-qemu"

MODULES_FILE = "/etc/modules-load.d/arcsup.conf"
MODULES_HEADER = "# Made by `arcsup setup`: what gives devices to VMs.\n"
MODULES_FOLDERS = ("/etc/modules-load.d", "/run/modules-load.d", "/usr/lib/modules-load.d")

SYSTEM_UNITS = ("/etc", "/usr/local/lib", "/usr/lib", "/lib")
USER_UNITS = ("/etc", "/usr/local/lib", "/usr/local/share", "/usr/lib", "/usr/share")
"""Where systemd looks for units (systemd.unit(5)); each is followed by systemd/system or user."""

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS_PASS = stat.S_IXGRP | stat.S_IXOTH


def plan_setup(host: Host, program: Path, choices: Choices | None = None) -> SetupPlan:
    """Return what this host lacks; ``program`` is the arcsup that the units are to start.

    A user's session gets what a user may do; the rest is told. Raises SpecError for a faulty
    configuration.
    """
    choices = choices or Choices()
    # The state directory comes first: the journal lives there.
    plan = _plan_directories(host)
    if host.places.system:
        plan += _plan_packages(host) + _plan_config(host) + _plan_user(host)
        plan += plan_drivers(host, choices) + _plan_modules(host, choices)
        plan += plan_tuning(host, choices)
        # A driver is installed once nothing else holds its cards.
        plan += plan_vendor(host, reboot_first=plan.reboot) + _plan_boot(host)
    else:
        plan += _tell_packages(host) + _plan_config(host)
    if plan.reboot:
        plan += plan_resume(host, program, choices)
    return plan + _plan_service(host, program)


def _plan_directories(host: Host) -> SetupPlan:
    """The runtime directory is not among them: it goes with every reboot, the daemon makes it."""
    places = host.places
    actions: list[CreateDirectory | SecureDirectory] = []
    # QEMU's user passes through to the images that it is to use, and can list nothing.
    needed = OTHERS_PASS if places.system else 0
    state = 0o700 | needed if places.system else 0o750
    wanted = {places.state: state, places.images: state, places.vms: 0o755, places.log: 0o750}
    for folder, mode in wanted.items():
        if not folder.is_dir():
            planned = {action.path for action in actions}
            actions.extend(
                action for action in create_directories(folder, mode) if action.path not in planned
            )
            continue
        status = folder.stat()
        before = stat.S_IMODE(status.st_mode)
        after = before & ~OTHERS_WRITE
        if folder in {places.state, places.images}:
            after |= needed
        if status.st_uid != host.uid or before != after:
            actions.append(SecureDirectory(str(folder), host.uid, after, status.st_uid, before))
    return SetupPlan(tuple(actions))


def _plan_packages(host: Host) -> SetupPlan:
    manager = find_manager(host)
    if manager is None:
        return SetupPlan(notes=("install QEMU, OVMF, swtpm and virtiofsd by hand",))
    action = plan_packages(host, manager)
    return SetupPlan() if action is None else SetupPlan((action,))


def _tell_packages(host: Host) -> SetupPlan:
    """Tell a user who may not install anything what root should."""
    manager = find_manager(host)
    action = None if manager is None else plan_packages(host, manager)
    if manager is None or action is None or not action.packages:
        return SetupPlan()
    return SetupPlan(notes=(f"as root, run: {' '.join((*manager.install, *action.packages))}",))


def _plan_config(host: Host) -> SetupPlan:
    """Plan the configuration, and the group that it names for the control socket."""
    file = host.places.config
    if file.exists():
        group = load_config(file).group
        missing = group is not None and host.places.system and find_group(host, group) is None
        return SetupPlan((CreateGroup(group),)) if group and missing else SetupPlan()
    text = read_resource("config/arcsup.yaml")
    actions: list[Action] = []
    if host.places.system and (
        find_group(host, GROUP) is not None or host.find_program("groupadd") is not None
    ):
        if find_group(host, GROUP) is None:
            actions.append(CreateGroup(GROUP))
        text = text.replace(f"#group: {GROUP}", f"group: {GROUP}")
    # The VM directory may be elsewhere, and this one not there yet.
    if not file.parent.is_dir() and not host.places.vms.is_relative_to(file.parent):
        actions.extend(create_directories(file.parent, 0o755))
    notes = (f"put yourself into group {GROUP} to do without sudo: usermod -aG {GROUP} USER",)
    made = any(isinstance(action, CreateGroup) for action in actions)
    return SetupPlan((*actions, CreateFile(str(file), text)), notes if made else ())


def _plan_user(host: Host) -> SetupPlan:
    """Plan the user that QEMU runs as: it needs KVM, and for VirGL the host's renderer."""
    if has_user(host, QEMU_USER) or host.find_program("useradd") is None:
        return SetupPlan()
    groups = tuple(name for name in ("kvm", "render") if find_group(host, name) is not None)
    return SetupPlan((CreateUser(QEMU_USER, groups),))


def _plan_modules(host: Host, choices: Choices) -> SetupPlan:
    file = host.path(MODULES_FILE)
    others = {
        line.strip().replace("-", "_")
        for folder in host.paths([Path(folder) for folder in MODULES_FOLDERS])
        if folder.is_dir()
        for other in sorted(folder.glob("*.conf"))
        for line in read_text(other).splitlines()
    }
    needed = [*(name for name in WANTED_MODULES if is_loadable(host, name))]
    needed += list_modules(host, choices)
    wanted = [name for name in needed if name not in others]
    if not wanted:
        return SetupPlan()
    notes = (f"modules are loaded at the next boot; now: modprobe -a {' '.join(wanted)}",)
    lines = "".join(f"{name}\n" for name in wanted)
    if not file.exists():
        folder = () if file.parent.is_dir() else tuple(create_directories(file.parent, 0o755))
        return SetupPlan((*folder, CreateFile(str(file), MODULES_HEADER + lines)), notes)
    before = read_text(file)
    if not before.startswith(MODULES_HEADER):
        lack = f"{MODULES_FILE} lacks {' '.join(wanted)}: add what is missing, or remove the file"
        return SetupPlan(notes=(lack,))
    after = f"{before.rstrip()}\n{lines}"
    return SetupPlan((ReplaceFile(str(file), before, after),), notes)


def _plan_boot(host: Host) -> SetupPlan:
    plan = plan_parameters(host, find_parameters(host))
    return SetupPlan(plan.actions, plan.notes, reboot=REBOOT in plan.notes)


def _plan_service(host: Host, program: Path) -> SetupPlan:
    """Plan the unit where systemd is, and its start where systemd runs."""
    if host.find_program("systemctl") is None:
        return SetupPlan(notes=("there is no systemd: start `arcsup daemon` at boot yourself",))
    if host.places.system:
        manager: Command = ("systemctl",)
        own = host.path("/etc/systemd/system")
        folders = [host.path(f"{folder}/systemd/system") for folder in SYSTEM_UNITS]
        wants = own / "multi-user.target.wants"
        name, runs = "arcsup.service", host.path("/run/systemd/system").is_dir()
    else:
        manager = ("systemctl", "--user")
        own = host.places.config.parent.parent / "systemd/user"
        folders = [own, *(host.path(f"{folder}/systemd/user") for folder in USER_UNITS)]
        wants = own / "default.target.wants"
        name, runs = "user/arcsup.service", (host.places.run.parent / "systemd").is_dir()
    actions: list[Action] = []
    if not any((folder / "arcsup.service").exists() for folder in folders):
        reload = ((*manager, "daemon-reload"),) if runs else ()
        actions.extend(_plan_unit(own, name, program, reload))
    if (wants / "arcsup.service").is_symlink():
        return SetupPlan(tuple(actions))
    if not runs:
        note = f"systemd does not run here; later: {' '.join(manager)} enable --now arcsup"
        return SetupPlan(tuple(actions), (note,))
    enable = RunCommand(
        (*manager, "enable", "--now", "arcsup.service"),
        (*manager, "disable", "--now", "arcsup.service"),
    )
    return SetupPlan((*actions, enable))


def _plan_unit(
    folder: Path, name: str, program: Path, reload: tuple[Command, ...]
) -> Iterator[Action]:
    """Yield what installs a unit that starts ``program``."""
    text = read_resource(f"contrib/systemd/{name}").replace("/usr/bin/arcsup", str(program))
    if not folder.is_dir():
        yield from create_directories(folder, 0o755)
    yield CreateFile(str(folder / "arcsup.service"), text, then=reload)
