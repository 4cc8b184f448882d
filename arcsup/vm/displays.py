"""What the guest shows, plays and is typed into: displays, virtio GPUs, sound, USB.

Source of option names: qemu-doc, "Display options" and "USB emulation".
"""

from ipaddress import ip_address
from pathlib import Path

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.model import (
    Argv,
    Audio,
    Display,
    DisplayType,
    GpuKind,
    UsbByProduct,
    Viewing,
    Vm,
)
from arcsup.opening import open_named
from arcsup.vm.capabilities import Capabilities
from arcsup.vm.options import Slot, escape, pci_place

FIRST_PORT = 5900
"""Where VNC's display 0 listens (RFC 6143, section 8), and SPICE by custom."""

DISPLAY_SOCKET = "display.sock"
"""Where SPICE or VNC listens in a VM's runtime folder, unless the file gives a place."""

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Where a client of this host finds who listens on every address."""

LONGEST_PASSWORD = 60
"""Characters of SPICE's tickets (SPICE_MAX_PASSWORD_LENGTH, spice/protocol.h)."""

FIRST_USB_HOST_PORT = 5
USB_PORTS = 15
"""As many as QEMU's controller can have; tablet, keyboard and redirection take ports 1 to 4."""


def find_render_node(user: Account, dev: Path = Path("/dev")) -> Path | None:
    """Return the first DRM render node that ``user`` can open; None where there is none."""
    nodes = sorted((dev / "dri").glob("renderD*"))
    return next((node for node in nodes if user.may_open(node)), None)


def wants_gl(vm: Vm) -> bool:
    """Whether the guest's 3D is to be drawn by the host's GPU, through VirGL."""
    return any(gpu.kind is GpuKind.VIRTIO and gpu.gl for gpu in vm.gpus)


def display_args(
    vm: Vm, capabilities: Capabilities, socket: Path, render_node: Path | None, images: Path
) -> Argv:
    """Return where the guest's picture goes.

    QEMU reads a password from its file itself: no command line and no log ever shows it.

    Raises:
        Terminal: this QEMU or this host cannot show it that way.
    """
    gl = wants_gl(vm)
    display = vm.display
    if display.type is DisplayType.GTK:
        _require_display(capabilities, "gtk", "install qemu-system-gui")
        return ("-display", "gtk,gl=on" if gl else "gtk")
    node = f",rendernode={escape(_need_render_node(render_node))}" if gl else ""
    if display.type is DisplayType.SPICE and gl and is_local(display):
        # The picture goes to a local client as a dma-buf, which only a unix socket can carry.
        return ("-display", "none", *_spice(capabilities, display, socket, f",gl=on{node}"))
    headless = gl or display.type is DisplayType.EGL_HEADLESS
    if headless:
        _require_display(capabilities, "egl-headless", "install qemu-system-modules-opengl")
        node = f",rendernode={escape(_need_render_node(render_node))}"
    shown = (
        *_password_args(display, images),
        "-display", f"egl-headless{node}" if headless else "none",
    )  # fmt: skip
    if display.type is DisplayType.SPICE:
        return (*shown, *_spice(capabilities, display, socket, ""))
    if display.type is DisplayType.VNC:
        asked = "" if display.password_file is None else f",password-secret={_OBJECT_ID}"
        return (*shown, "-vnc", _vnc_place(display, socket) + asked)
    return shown


_OBJECT_ID = "display-password"


def _password_args(display: Display, images: Path) -> Argv:
    if display.password_file is None:
        return ()
    return ("-object", f"secret,id={_OBJECT_ID},file={escape(images / display.password_file)}")


def check_password(display: Display, images: Path) -> None:
    """Raise Terminal for a password that no client could send. The file is not shown."""
    if display.password_file is None:
        return
    file = images / display.password_file
    try:
        with open_named(file) as stream:
            password = stream.read(LONGEST_PASSWORD + 1)
    except OSError as error:
        raise Terminal(
            f"display.passwordFile: {file}: {error.strerror}", hint="put the file there"
        ) from error
    if not 0 < len(password) <= LONGEST_PASSWORD or password.strip() != password:
        raise Terminal(
            f"display.passwordFile: {file} is empty, too long, or ends in a newline or a blank",
            hint=f"write up to {LONGEST_PASSWORD} characters with printf; VNC looks at eight",
        )


def _require_display(capabilities: Capabilities, name: str, hint: str) -> None:
    if name not in capabilities.displays:
        raise Terminal(f"this QEMU ({capabilities.version_text}) has no display {name}", hint=hint)


def _need_render_node(node: Path | None) -> Path:
    if node is None:
        raise Terminal(
            "gl needs a GPU of the host: no /dev/dri/renderD* can be opened",
            hint="load the GPU's driver and join the group render, or leave gl out",
        )
    return node


def _spice(capabilities: Capabilities, display: Display, socket: Path, more: str) -> Argv:
    if not capabilities.spice:
        raise Terminal(
            f"this QEMU ({capabilities.version_text}) has no SPICE",
            hint="install qemu-system-modules-spice, or choose display: vnc",
        )
    if is_local(display):
        place = f"unix=on,addr={escape(socket)}"
    else:
        place = f"addr={_address(display)},port={display.port or FIRST_PORT}"
    open_to = "disable-ticketing=on"
    if display.password_file is not None:
        open_to = f"password-secret={_OBJECT_ID}"
    return ("-spice", f"{place},{open_to}{more}")


def _vnc_place(display: Display, socket: Path) -> str:
    if is_local(display):
        return f"unix:{escape(socket)}"
    port = display.port or FIRST_PORT
    if port < FIRST_PORT:
        raise Terminal(
            f"display.port: QEMU's VNC cannot listen on {port}", hint=f"use {FIRST_PORT} or more"
        )
    address = _address(display)
    host = f"[{address}]" if ip_address(address).version == 6 else address
    return f"{host}:{port - FIRST_PORT}"


def _address(display: Display) -> str:
    """Return the address to listen on: loopback unless the file says otherwise."""
    address = display.listen or "127.0.0.1"
    try:
        return str(ip_address(address))
    except ValueError:
        raise Terminal(
            f"display.listen: {address} is no IP address", hint="write an address, 127.0.0.1 say"
        ) from None


def find_viewing(display: Display, socket: Path, frames: tuple[str, ...]) -> Viewing:
    """Return where a client of this host finds the picture of a VM that runs."""
    if display.type not in {DisplayType.SPICE, DisplayType.VNC}:
        return Viewing(display.type, frames=frames)
    if is_local(display):
        return Viewing(display.type, str(socket), frames=frames)
    address = _address(display)
    port = display.port or FIRST_PORT
    return Viewing(display.type, address=_ANYWHERE.get(address, address), port=port, frames=frames)


def is_local(display: Display) -> bool:
    """Whether a display listens on its own unix socket, where the file gives no place."""
    return display.listen is None and display.port is None


def graphics_args(vm: Vm, capabilities: Capabilities) -> Argv:
    """Return the guest's graphics cards: virtio GPUs if asked for, else VGA for a display."""
    wanted = [gpu.gl for gpu in vm.gpus if gpu.kind is GpuKind.VIRTIO for _ in range(gpu.count)]
    if not wanted:
        if vm.display.type is DisplayType.NONE:
            return ()
        capabilities.require_device("VGA")
        return ("-device", f"VGA,id=vga,bus=pcie.0,addr={Slot.DISPLAY:#x}")
    argv: list[str] = []
    for index, gl in enumerate(wanted):
        # The first one speaks VGA too, so that firmware and boot loaders have a screen.
        name = ("virtio-vga-gl" if gl else "virtio-vga") if index == 0 else ""
        device = name or ("virtio-gpu-gl-pci" if gl else "virtio-gpu-pci")
        capabilities.require_device(device, "install qemu-system-modules-opengl" if gl else "")
        place = (
            f"bus=pcie.0,addr={Slot.DISPLAY:#x}"
            if index == 0
            else pci_place(Slot.GPUS, index - 1, slots=1, what="further virtio GPUs")
        )
        argv += ["-device", f"{device},id=virtio-gpu{index},{place}"]
    return tuple(argv)


def input_args(vm: Vm, capabilities: Capabilities) -> Argv:
    """Return the USB controller with its tablet, keyboard, redirections and host devices."""
    shown = vm.display.type is not DisplayType.NONE
    if not shown and not vm.usb:
        return ()
    if len(vm.usb) > USB_PORTS - FIRST_USB_HOST_PORT + 1:
        limit = USB_PORTS - FIRST_USB_HOST_PORT + 1
        raise Terminal(f"usb: more than {limit} devices", hint=f"use at most {limit}")
    ports = f"p2={USB_PORTS},p3={USB_PORTS}"
    argv = ["-device", f"qemu-xhci,id=usb,{ports},bus=pcie.0,addr={Slot.USB:#x}"]
    if shown:
        # A tablet tells where the pointer is; a mouse would have to be grabbed. Looking Glass's
        # client moves a mouse, and beside a tablet Windows clicks where that was seen last
        # (Looking Glass's documentation, "Installation": SPICE server).
        on_spice = vm.display.type is DisplayType.SPICE
        pointer = "mouse" if on_spice and vm.looking_glass is not None else "tablet"
        argv += [
            "-device", f"usb-{pointer},id={pointer},bus=usb.0,port=1",
            "-device", "usb-kbd,id=keyboard,bus=usb.0,port=2",
        ]  # fmt: skip
    if vm.display.type is DisplayType.SPICE and "usb-redir" in capabilities.devices:
        for port in (3, 4):
            name = f"redirection{port}"
            argv += [
                "-chardev", f"spicevmc,id={name},name=usbredir",
                "-device", f"usb-redir,id={name},chardev={name},bus=usb.0,port={port}",
            ]  # fmt: skip
    if vm.usb:
        capabilities.require_device("usb-host")
    for index, usb in enumerate(vm.usb):
        which = (
            f"vendorid={usb.vendor:#06x},productid={usb.product:#06x}"
            if isinstance(usb, UsbByProduct)
            else f"hostbus={usb.bus},hostport={escape(usb.port)}"
        )
        port = FIRST_USB_HOST_PORT + index
        argv += ["-device", f"usb-host,id=usb-host{index},{which},bus=usb.0,port={port}"]
    return tuple(argv)


def audio_args(vm: Vm, capabilities: Capabilities) -> Argv:
    """Return the sound card and where its sound goes; Scream brings its own way."""
    on_spice = vm.display.type is DisplayType.SPICE
    if vm.audio in {Audio.NONE, Audio.SCREAM} or (vm.audio is Audio.AUTO and not on_spice):
        return ()
    if vm.audio is Audio.SPICE and not on_spice:
        raise Terminal("audio: spice needs display: spice", hint="set both, or audio: none")
    if vm.audio is not Audio.PIPEWIRE and capabilities.spice:
        driver = "spice"
    else:
        # QEMU speaks to PipeWire itself since 8.1; before, through PipeWire's PulseAudio server.
        names = ("pipewire", "pa") if vm.audio is Audio.PIPEWIRE else ()
        driver = next((name for name in names if name in capabilities.audiodevs), "")
    if not driver:
        raise Terminal(
            f"this QEMU ({capabilities.version_text}) has no sound driver for {vm.audio.value}",
            hint="install qemu-system-gui (PipeWire, PulseAudio) or qemu-system-modules-spice",
        )
    return (
        "-audiodev", f"{driver},id=audio",
        "-device", f"ich9-intel-hda,id=sound,bus=pcie.0,addr={Slot.SOUND:#x}",
        "-device", "hda-duplex,id=codec,bus=sound.0,cad=0,audiodev=audio",
    )  # fmt: skip
