"""LibVF.IO's files in arcsup's words: the same VM, with what was unsafe made safe and said.

``arcd`` started a VM when told to; so ``autostart`` is false. Images stay where they are, below
``root``. Guests installed there have drivers for the hardware that arcd gave them: the disks are
on SATA and the network card is an RTL8139.
"""

import re
from pathlib import Path, PurePath

from attrs import evolve

from arcsup.spec.draft import At, Draft, Keys, Value, is_name, make_name
from arcsup.spec.faults import Mark, Problems
from arcsup.spec.libvfio_hooks import translate_hooks
from arcsup.spec.libvfio_keys import LIBVFIO, Config, Gpu, GpuType, InstallOs, Introspect
from arcsup.spec.nodes import Mapping, Node, Scalar, Sequence, locate
from arcsup.spec.qemu_arguments import Verdict, judge_option, own_ids
from arcsup.spec.units import parse_pci_address

VNC_PORTS = range(5900, 6000)
"""Ports on which arcd listened for VNC; any other number is none."""

SSH = 22
NEW_GPU_MIB = (1000, 2000)
"""Video memory that arcd looked for where the file says nothing."""


def is_libvfio(root: Mapping) -> bool:
    """Tell whether a file is LibVF.IO's: by its tag, or by the key that it cannot be without."""
    return bool(root.tag) or root.find("container") is not None


def translate_libvfio(source: Mapping, file: PurePath) -> Draft:
    """Return the native draft of a LibVF.IO file. Raises Problems with everything wrong in it."""
    root = _flatten_gpus(source)
    config, problems = LIBVFIO.read_all(root, "", {})
    if problems or config is None:
        raise Problems(problems)
    translation = _Translation(root, config, file)
    translation.translate()
    if translation.draft.problems:
        raise Problems(translation.draft.problems)
    return translation.draft


def find_path(root: Node, mark: Mark) -> str:
    """Return the path of the value at a place of a file, "" when none stands there."""
    pending: list[tuple[Node, str]] = [(root, "")]
    while pending:
        node, path = pending.pop()
        if path and node.mark == mark:
            return path
        if isinstance(node, Mapping):
            pending += [
                (value, f"{path}.{key.text}" if path else key.text)
                for key, value in reversed(node.pairs)
                if isinstance(key, Scalar)
            ]
        elif isinstance(node, Sequence):
            pending += [(item, f"{path}[{n}]") for n, item in reversed([*enumerate(node.items)])]
    return ""


def _flatten_gpus(root: Mapping) -> Mapping:
    """Return the file with each GPU as one map, as which LibVF.IO's lists of maps are meant."""

    def flatten(node: Node) -> Node:
        if not isinstance(node, Sequence) or not node.items:
            return node
        maps = [item for item in node.items if isinstance(item, Mapping)]
        if len(maps) < len(node.items):
            return node
        return Mapping(node.mark, tuple(pair for one in maps for pair in one.pairs), node.size)

    pairs = tuple(
        (key, evolve(value, items=tuple(flatten(item) for item in value.items)))
        if isinstance(key, Scalar) and key.text == "gpus" and isinstance(value, Sequence)
        else (key, value)
        for key, value in root.pairs
    )
    return evolve(root, pairs=pairs)


class _Translation:
    """One file on its way; each method fills some native keys of the draft."""

    def __init__(self, root: Mapping, config: Config, file: PurePath) -> None:
        self.root = root
        self.config = config
        self.file = file
        self.draft = Draft(mark=root.mark)

    def translate(self) -> None:
        """Fill the draft, in the order in which a person reads a VM file."""
        self._translate_name()
        self._translate_cpus()
        self._translate_images()
        self._translate_gpus()
        self._translate_networks()
        self._translate_display()
        self._translate_share()
        translate_hooks(self.config, self.draft, self._mark, self._at)
        self._translate_commands()
        self._note_the_rest()

    def _mark(self, path: str) -> Mark:
        return locate(self.root, path)

    def _says(self, path: str) -> bool:
        """Tell whether the file has a key."""
        parent, _, key = path.rpartition(".")
        node: Node | None = self.root
        for step in re.findall(r"[^.\[\]]+", parent):
            if isinstance(node, Mapping):
                node = node.find(step)
            elif isinstance(node, Sequence):
                node = node.items[int(step)]
        return isinstance(node, Mapping) and node.find(key) is not None

    def _at(self, path: str, value: Value) -> At:
        """Return a value with the place of what it is made of."""
        parent, _, key = path.rpartition(".")
        node: Node = self.root
        for step in re.findall(r"[^.\[\]]+", parent):
            if isinstance(node, Mapping):
                node = node.find(step) or node
            elif isinstance(node, Sequence) and step.isdigit() and int(step) < len(node.items):
                node = node.items[int(step)]
        keys = node.pairs if isinstance(node, Mapping) else ()
        mark = next((k.mark for k, _ in keys if isinstance(k, Scalar) and k.text == key), None)
        return At(value, self._mark(path), mark)

    def _note(self, path: str, message: str) -> None:
        self.draft.note(self._mark(path), path, message)

    def _translate_name(self) -> None:
        keys, config = self.draft.keys, self.config
        stem = self.file.stem
        # The label is the same in most files, so it tells VMs apart only where nothing else can.
        name = stem if is_name(stem) else make_name(stem) or make_name(config.name)
        if name and name != stem:
            keys["name"] = self._at("name", name)
            self._note("name", f"the VM's name is {name}; {stem!r} cannot be one")
        if config.name:
            keys["description"] = self._at("name", config.name)
        keys["autostart"] = False
        self._note("", "is started by `arcsup start` only, as arcd did (autostart: false)")

    def _translate_cpus(self) -> None:
        cpus = self.config.cpus
        keys = ("cores", "threads", "sockets")
        values = {key: self._at(f"cpus.{key}", getattr(cpus, key)) for key in keys}
        self.draft.keys["cpus"] = self._at("cpus", values)
        self.draft.keys["memory"] = self._at("cpus.ramAlloc", f"{cpus.ram_alloc}MiB")
        if not self.config.showhypervisor:
            self.draft.keys["hideHypervisor"] = self._at("showhypervisor", True)

    def _expand(self, path: str, key: str) -> str:
        """Return a path with the home folder for a ~ at its beginning."""
        if path != "~" and not path.startswith("~/"):
            return path
        parts = self.file.parts
        if parts[:2] == ("/", "home") and len(parts) > len(("/", "home", "USER")):
            home = str(PurePath(*parts[:3]))
        else:
            try:
                home = str(Path.home())
            except RuntimeError:
                return path
            self._note(key, f"~ is taken for {home}; write the whole path")
        return home + path[1:]

    def _find_root(self) -> str:
        """Return the absolute folder of the images."""
        root = self._expand(self.config.root, "root")
        if not root.startswith("/"):
            message = f"expected an absolute path or one below ~/, got {self.config.root!r}"
            self.draft.refuse(self._mark("root"), "root", message)
        return root.rstrip("/")

    def _translate_images(self) -> None:
        container, root = self.config.container, self._find_root()
        kernel: Keys = {"path": self._at("container.kernel", f"{root}/kernel/{container.kernel}")}
        if container.initial_size is not None:
            kernel["size"] = self._at("container.initialSize", f"{container.initial_size}GiB")
        disks: list[Value] = [self._at("container.kernel", kernel | _hardware(container.kernel))]
        for number, state in enumerate(container.state):
            place = f"container.state[{number}]"
            disk = {"path": self._at(place, f"{root}/states/{state}")} | _hardware(state)
            disks.append(self._at(place, disk))
        self.draft.keys["disks"] = self._at("container", disks)
        if container.iso is not None:
            iso = self._expand(container.iso, "container.iso")
            if not iso.startswith("/"):
                self._note(
                    "container.iso",
                    "is looked for below STATE/images, no more below the "
                    "directory in which arcd was called",
                )
            self.draft.keys["cdroms"] = self._at("container.iso", [self._at("container.iso", iso)])

    def _translate_gpus(self) -> None:
        gpus = [
            self._at(f"gpus[{number}]", self._translate_gpu(gpu, f"gpus[{number}]"))
            for number, gpu in enumerate(self.config.gpus)
        ]
        if gpus:
            self.draft.keys["gpus"] = self._at("gpus", gpus)

    def _translate_gpu(self, gpu: Gpu, path: str) -> Keys:
        made = self._at(f"{path}.gpuType", _KINDS[gpu.gpu_type])
        keys: Keys = {"kind": made}
        if gpu.gpu_type is GpuType.PASSTHROUGH:
            keys["address"] = self._at(f"{path}.bdf", gpu.bdf or "")
        elif gpu.gpu_type is GpuType.SRIOV:
            keys["vendor"] = "amd"
            if gpu.acceptable_types:
                names = ", ".join(gpu.acceptable_types)
                self._note(
                    f"{path}.acceptableTypes",
                    f"{names}: is not looked at, a virtual "
                    "function of any AMD card is taken; `parent` names a card",
                )
        if gpu.gpu_type is not GpuType.MDEV:
            for key in ("minVRam", "maxVRam"):
                if self._says(f"{path}.{key}"):
                    self._note(
                        f"{path}.{key}",
                        "is not looked at: nothing tells the video memory "
                        f"of a device of this kind (kind: {made.value})",
                    )
            return keys
        least, most = NEW_GPU_MIB if not gpu.mdev_type else (None, None)
        least = least if gpu.min_vram is None else gpu.min_vram
        most = most if gpu.max_vram is None else gpu.max_vram
        keys["minVRam"] = self._at(f"{path}.minVRam", least) if least and least > 0 else None
        keys["maxVRam"] = self._at(f"{path}.maxVRam", most) if most and most > 0 else None
        keys["suffix"] = self._at(f"{path}.suffix", gpu.suffix) if gpu.suffix else None
        keys["mdevType"] = self._at(f"{path}.mdevType", gpu.mdev_type) if gpu.mdev_type else None
        port = gpu.parent_port
        keys["parent"] = self._at(f"{path}.parentPort", port) if port is not None else None
        return keys

    def _translate_networks(self) -> None:
        forwards = self._list_forwards()
        user: Keys = {"type": "user", "model": "rtl8139"}
        if forwards:
            user["forwards"] = forwards
            path = "connectivity" if self.config.connectivity.exposed_ports else "sshPort"
            self._note(
                path, "ports are forwarded from 127.0.0.1 only, arcd listened on every address"
            )
        cards: list[Value] = [user]
        for number, nic in enumerate(self.config.nics):
            mac = self._at(f"nics[{number}].mac", nic.mac)
            cards.append(self._at(f"nics[{number}]", {"type": "vf", "mac": mac}))
        self.draft.keys["networks"] = cards

    def _list_forwards(self) -> list[Value]:
        exposed = self.config.connectivity.exposed_ports
        taken = {(str(port.protocol), port.host) for port in exposed}
        forwards: list[Value] = []
        ssh = self.config.ssh_port
        # Files of before sshPort have that forward among the others.
        known = not self._says("sshPort") and any(port.guest == SSH for port in exposed)
        same = any((port.host, port.guest) == (ssh, SSH) for port in exposed)
        if (
            ssh > 0
            and not known
            and not same
            and (self._says("sshPort") or ("tcp", ssh) not in taken)
        ):
            forwards.append(self._at("sshPort", f"tcp:127.0.0.1:{ssh}:{SSH}"))
        for number, port in enumerate(exposed):
            text = f"{port.protocol}:127.0.0.1:{port.host}:{port.guest}"
            forwards.append(self._at(f"connectivity.exposedPorts[{number}]", text))
        return forwards

    def _translate_display(self) -> None:
        config, keys = self.config, self.draft.keys
        vnc = config.vnc_port in VNC_PORTS
        if config.spice:
            place: Keys = {
                "type": "spice",
                "listen": "127.0.0.1",
                "port": self._at("spicePort", config.spice_port),
            }
            keys["display"] = self._at("spice", place)
            if config.nographics:
                self._note("nographics", "with SPICE the guest has a VGA card too")
        elif vnc:
            port = self._at("vncPort", config.vnc_port)
            keys["display"] = self._at(
                "vncPort", {"type": "vnc", "listen": "127.0.0.1", "port": port}
            )
            self._note(
                "vncPort",
                "VNC listens on 127.0.0.1 only, arcd listened on every address without a password",
            )
        elif not config.nographics:
            keys["display"] = self._at("nographics", "vnc")
            self._note(
                "nographics",
                "arcsup runs without a screen of its own: the picture is on "
                "VNC on a unix socket instead of in a window",
            )
        if vnc and config.spice:
            self._note("vncPort", "is left out: a VM has one display, and spice is true")
        elif config.vnc_port >= 0 and not vnc:
            self._note("vncPort", f"{config.vnc_port} is no port from 5900 to 5999, no VNC")
        if config.introspect is Introspect.LOOKING_GLASS:
            # arcd's frame had 128 MiB, which is what a screen of this size needs.
            size: Keys = {"width": 3840, "height": 2160}
            keys["lookingGlass"] = self._at("introspect", size)
            keys["audio"] = self._at("introspect", "scream")

    def _translate_share(self) -> None:
        if self.config.shareddir is None:
            return
        folder = self._expand(self.config.shareddir, "shareddir")
        share: Keys = {"path": self._at("shareddir", folder), "tag": "shared"}
        self.draft.keys["shares"] = self._at("shareddir", [share])
        self._note(
            "shareddir",
            "is no FAT disk any more but a share that the guest mounts by the "
            "tag `shared` (virtiofs, else 9p)",
        )

    def _translate_commands(self) -> None:
        values = [",".join(command.values) for command in self.config.commands]
        made_here = own_ids(values)
        args: list[Value] = []
        for number, (command, value) in enumerate(zip(self.config.commands, values, strict=True)):
            path = f"commands[{number}]"
            mark = self._mark(path)
            name = command.arg.lstrip("-")
            if name == "cpu" and re.fullmatch("[A-Za-z0-9._+-]+(,[A-Za-z0-9._=+-]+)*", value):
                cpus = self.draft.keys["cpus"]
                assert isinstance(cpus, At)
                assert isinstance(cpus.value, dict)
                cpus.value["model"] = self._at(path, value)
                continue
            judgement = judge_option(command.arg, value)
            if judgement.verdict is Verdict.REFUSED:
                self.draft.refuse(mark, path, f"{judgement.because}; remove or change it")
                continue
            if judgement.because:
                self._note(path, judgement.because)
            if judgement.verdict is Verdict.PASSED:
                args.append(At(command.arg, mark))
                if value:
                    args.append(At(self._rename_devices(value, made_here), mark))
        if args:
            self.draft.keys["qemu"] = {"args": self._at("commands", args)}

    def _rename_devices(self, value: str, made_here: frozenset[str]) -> str:
        """Return an option's value with arcsup's ids of the GPUs for those of the file."""
        for number, gpu in reversed([*enumerate(self.config.gpus)]):
            if gpu.gpu_type is GpuType.MDEV and gpu.dev_id not in made_here:
                value = value.replace(f"device.{gpu.dev_id}.", f"device.gpu{number}.")
        return value

    def _note_the_rest(self) -> None:
        config = self.config
        if config.startintro:
            self._note("startintro", "the daemon starts no viewer: `arcsup view` does")
        if config.install_os is not InstallOs.NONE:
            self._note("installOs", "is not carried over: `arcsup create --unattended` does it")
        if config.sudo:
            self._note("sudo", "is not carried over: arcsup's daemon has the rights it needs")
        if config.lg_key is not None:
            self._note("lgKey", "is not carried over: it is the viewer's setting")
        for number, address in enumerate(config.blacklisted_pci):
            path = f"blacklistedPci[{number}]"
            try:
                found = parse_pci_address(address)
            except ValueError as error:
                self.draft.refuse(self._mark(path), path, f"{address!r}: {error}")
                continue
            self._note(
                path,
                "is for all VMs and stands in arcsup.yaml: "
                f"gpus: [{{match: {found}, exclude: true}}]",
            )


_KINDS = {GpuType.SRIOV: "vf", GpuType.MDEV: "vgpu", GpuType.PASSTHROUGH: "passthrough"}


def _hardware(image: str) -> Keys:
    """Return how an image is opened and shown: arcd made qcow2 and left it to QEMU to look."""
    raw = Path(image).suffix in {".raw", ".img"}
    return {"format": "raw" if raw else "qcow2", "bus": "sata"}
