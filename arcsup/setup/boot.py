"""The kernel's command line, through what the boot loader has for additions.

Sources: Debian's grub-mkconfig (it reads /etc/default/grub.d/*.cfg, upstream's does not),
kernel-install(8), proxmox-boot-tool(8), kernelstub(8), grubby(8), systemd's Boot Loader Interface.
"""

from pathlib import Path

from attrs import frozen

from arcsup.setup.actions import (
    Action,
    Command,
    CreateDirectory,
    CreateFile,
    ReplaceFile,
    RunCommand,
)
from arcsup.setup.host import Host, read_text

GRUB_DROP_IN = "/etc/default/grub.d/arcsup.cfg"
CMDLINE = "/etc/kernel/cmdline"

ENTRY_FOLDERS = ("boot/loader/entries", "boot/efi/loader/entries", "efi/loader/entries")
"""Where the entries of the Boot Loader Specification are, by where the partition is mounted."""

LOADER_INFO = "firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
"""In sysfs: four bytes of attributes, then the boot loader's name and version in UTF-16."""


@frozen
class Editor:
    """A program that changes every entry of its boot loader, and takes the change back.

    ``add`` and ``remove`` end with the parameters; ``files`` are globs of where it keeps them.
    """

    add: Command
    remove: Command
    files: tuple[str, ...]

    def fill(self, command: Command, words: str) -> Command:
        """Return a command for ``words``."""
        return (*command[:-1], command[-1].format(words))


EDITORS = (
    Editor(
        ("kernelstub", "--add-options", "{}"),
        ("kernelstub", "--delete-options", "{}"),
        ("etc/kernelstub/configuration",),
    ),
    Editor(
        ("grubby", "--update-kernel=ALL", "--args={}"),
        ("grubby", "--update-kernel=ALL", "--remove-args={}"),
        ("boot/loader/entries/*.conf", "boot/grub2/grubenv", "etc/default/grub"),
    ),
)
"""kernelstub(8) of Pop!_OS, grubby(8) of Fedora."""

PROXMOX_REFRESH: Command = ("proxmox-boot-tool", "refresh")

REBOOT = "the kernel's command line has changed: reboot, then run `arcsup doctor`"


@frozen
class BootPlan:
    """What is to be done, and what to tell the user."""

    actions: tuple[Action, ...] = ()
    notes: tuple[str, ...] = ()


def plan_parameters(host: Host, parameters: tuple[str, ...]) -> BootPlan:
    """Return how ``parameters`` get onto the kernel's command line."""
    if not parameters:
        return BootPlan()
    words = " ".join(parameters)
    for editor in EDITORS:
        if host.find_program(editor.add[0]) is not None:
            return _plan_editor(host, editor, parameters)
    # GRUB's files stay behind where another boot loader took its place.
    by_systemd_boot = _find_loader(host).startswith("systemd-boot")
    if _has_grub_drop_ins(host) and not by_systemd_boot:
        return _plan_grub(host, words)
    if by_systemd_boot or host.path(CMDLINE).exists() or _has_entries(host):
        return _plan_cmdline(host, parameters)
    return BootPlan(notes=(f"add to the kernel's command line and reboot: {words}",))


def _plan_editor(host: Host, editor: Editor, parameters: tuple[str, ...]) -> BootPlan:
    # What is there already was asked for by somebody else, who may want to keep it.
    known = {
        word.strip("\"',[]")
        for pattern in editor.files
        for file in host.root.glob(pattern)
        for word in read_text(file).split()
    }
    missing = " ".join(word for word in parameters if word not in known)
    if not missing:
        return BootPlan(notes=(REBOOT,))
    change = RunCommand(editor.fill(editor.add, missing), editor.fill(editor.remove, missing))
    return BootPlan((change,), (REBOOT,))


def _find_loader(host: Host) -> str:
    """Return the boot loader that started the host, "" where it told the firmware nothing."""
    try:
        content = (host.sysfs / LOADER_INFO).read_bytes()
    except OSError:
        return ""
    return content[4:].decode("utf-16-le", errors="replace")


def _has_grub_drop_ins(host: Host) -> bool:
    program = host.find_program("grub-mkconfig")
    made = host.path("/boot/grub/grub.cfg").exists()
    return made and program is not None and "default/grub.d" in read_text(program)


def _plan_grub(host: Host, words: str) -> BootPlan:
    drop_in = host.path(GRUB_DROP_IN)
    content = (
        "# Made by `arcsup setup`, taken back by `arcsup setup --undo`.\n"
        f'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {words}"\n'
    )
    if drop_in.exists():
        return BootPlan(notes=(REBOOT,))
    if _has_proxmox_boot(host):
        # It boots from partitions of its own, onto which update-grub does not write.
        update: Command = PROXMOX_REFRESH
    elif host.find_program("update-grub") is not None:
        update = ("update-grub",)
    else:
        update = ("grub-mkconfig", "-o", "/boot/grub/grub.cfg")
    folder = () if drop_in.parent.is_dir() else (CreateDirectory(str(drop_in.parent)),)
    return BootPlan((*folder, CreateFile(str(drop_in), content, then=(update,))), (REBOOT,))


def _has_entries(host: Host) -> bool:
    return any(
        any(host.path(folder).glob("*.conf"))
        for folder in ENTRY_FOLDERS
        if host.path(folder).is_dir()
    )


def _plan_cmdline(host: Host, parameters: tuple[str, ...]) -> BootPlan:
    file = host.path(CMDLINE)
    before = read_text(file)
    base = before or " ".join(
        # What the boot loader adds by itself; kernel-install(8) leaves these out as well.
        word
        for word in host.command_line
        if not word.startswith(("BOOT_IMAGE=", "initrd="))
    )
    missing = [word for word in parameters if word not in base.split()]
    if before and not missing:
        return BootPlan(notes=(REBOOT,))
    after = " ".join([*base.split(), *missing]) + "\n"
    refresh = _find_refresh(host)
    if not refresh:
        return BootPlan(notes=(f"in {CMDLINE}, make the line read {after.strip()}; then reboot",))
    if file.exists():
        return BootPlan((ReplaceFile(str(file), before, after, refresh),), (REBOOT,))
    folder = () if file.parent.is_dir() else (CreateDirectory(str(file.parent)),)
    return BootPlan((*folder, CreateFile(str(file), after, then=refresh)), (REBOOT,))


def _has_proxmox_boot(host: Host) -> bool:
    configured = host.read("/etc/kernel/proxmox-boot-uuids").strip()
    return bool(configured) and host.find_program(PROXMOX_REFRESH[0]) is not None


def _find_refresh(host: Host) -> tuple[Command, ...]:
    """Return the commands that write the entries of all kernels anew."""
    if _has_proxmox_boot(host):
        return (PROXMOX_REFRESH,)
    if host.find_program("kernel-install") is None:
        return ()
    modules = host.path("/lib/modules")
    releases = sorted(folder.name for folder in modules.iterdir()) if modules.is_dir() else []
    images = ((release, _find_image(host, release)) for release in releases)
    return tuple(
        ("kernel-install", "add", release, str(image)) for release, image in images if image
    )


def _find_image(host: Host, release: str) -> Path | None:
    candidates = (Path(f"/lib/modules/{release}/vmlinuz"), Path(f"/boot/vmlinuz-{release}"))
    return next((path for path in candidates if host.path(path).is_file()), None)
