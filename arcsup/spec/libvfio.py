"""LibVF.IO's files in arcsup's words: the same VM, with what was unsafe made safe and said.

``arcd`` started a VM when told to; so ``autostart`` is false. Images stay where they are, below
``root``. Guests installed there have drivers for the hardware that arcd gave them: the disks are
on SATA and the network card is an RTL8139.
"""

import re
from pathlib import Path, PurePath

from arcsup.spec.draft import At, Draft, Keys, Value, is_name, make_name
from arcsup.spec.faults import Problems
from arcsup.spec.libvfio_hooks import translate_hooks
from arcsup.spec.libvfio_keys import LIBVFIO, Config, Gpu, GpuType, InstallOs, Introspect
from arcsup.spec.libvfio_tree import Places, flatten_gpus
from arcsup.spec.nodes import Mapping
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
    places = Places(flatten_gpus(source))
    config, problems = LIBVFIO.read_all(places.root, "", {})
    if problems or config is None:
        raise Problems(problems)
    translation = _Translation(places, config, file)
    translation.translate()
    if translation.draft.problems:
        raise Problems(translation.draft.problems)
    return translation.draft


class _Translation:
    """One file on its way; each method fills some native keys of the draft."""

    def __init__(self, source: Places, config: Config, file: PurePath) -> None:
        self.source = source
        self.config = config
        self.file = file
        self.draft = Draft(mark=source.root.mark)

    def translate(self) -> None:
        """Fill the draft, in the order in which a person reads a VM file."""
        self._translate_name()
        self._translate_cpus()
        self._translate_images()
        self._translate_gpus()
        self._translate_networks()
        self._translate_display()
        self._translate_share()
        translate_hooks(self.config, self.draft, self.source)
        self._translate_commands()
        self._note_the_rest()

    def _note(self, path: str, message: str) -> None:
        self.draft.note(self.source.mark(path), path, message)

    def _translate_name(self) -> None:
        keys, config = self.draft.keys, self.config
        stem = self.file.stem
        # The label is the same in most files, so it tells VMs apart only where nothing else can.
        name = stem if is_name(stem) else make_name(stem) or make_name(config.name)
        if name and name != stem:
            keys["name"] = self.source.at("name", name)
            self._note("name", f"the VM's name is {name}; {stem!r} cannot be one")
        if config.name:
            keys["description"] = self.source.at("name", config.name)
        keys["autostart"] = False
        self._note("", "is started by `arcsup start` only, as arcd did (autostart: false)")

    def _translate_cpus(self) -> None:
        cpus = self.config.cpus
        keys = ("cores", "threads", "sockets")
        values = {key: self.source.at(f"cpus.{key}", getattr(cpus, key)) for key in keys}
        self.draft.keys["cpus"] = self.source.at("cpus", values)
        self.draft.keys["memory"] = self.source.at("cpus.ramAlloc", f"{cpus.ram_alloc}MiB")
        if not self.config.showhypervisor:
            self.draft.keys["hideHypervisor"] = self.source.at("showhypervisor", True)

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
            self.draft.refuse(self.source.mark("root"), "root", message)
        return root.rstrip("/")

    def _translate_images(self) -> None:
        container, root = self.config.container, self._find_root()
        kernel: Keys = {
            "path": self.source.at("container.kernel", f"{root}/kernel/{container.kernel}")
        }
        if container.initial_size is not None:
            kernel["size"] = self.source.at("container.initialSize", f"{container.initial_size}GiB")
        disks: list[Value] = [
            self.source.at("container.kernel", kernel | _hardware(container.kernel))
        ]
        for number, state in enumerate(container.state):
            place = f"container.state[{number}]"
            disk = {"path": self.source.at(place, f"{root}/states/{state}")} | _hardware(state)
            disks.append(self.source.at(place, disk))
        self.draft.keys["disks"] = self.source.at("container", disks)
        if container.iso is not None:
            iso = self._expand(container.iso, "container.iso")
            if not iso.startswith("/"):
                self._note(
                    "container.iso",
                    "is looked for below STATE/images, no more below the "
                    "directory in which arcd was called",
                )
            self.draft.keys["cdroms"] = self.source.at(
                "container.iso", [self.source.at("container.iso", iso)]
            )

    def _translate_gpus(self) -> None:
        gpus = [
            self.source.at(f"gpus[{number}]", self._translate_gpu(gpu, f"gpus[{number}]"))
            for number, gpu in enumerate(self.config.gpus)
        ]
        if gpus:
            self.draft.keys["gpus"] = self.source.at("gpus", gpus)

    def _translate_gpu(self, gpu: Gpu, path: str) -> Keys:
        keys: Keys = {"kind": self.source.at(f"{path}.gpuType", _KINDS[gpu.gpu_type])}
        if gpu.gpu_type is GpuType.PASSTHROUGH:
            for key in ("minVRam", "maxVRam"):
                if self.source.says(f"{path}.{key}"):
                    self._note(f"{path}.{key}", "is not looked at: `bdf` names the device")
            return keys | {"address": self.source.at(f"{path}.bdf", gpu.bdf or "")}
        keys |= self._translate_limits(gpu, path)
        if gpu.gpu_type is GpuType.SRIOV:
            return keys | self._translate_types(gpu, path)
        told = {"suffix": gpu.suffix, "mdevType": gpu.mdev_type}
        keys |= {key: self.source.at(f"{path}.{key}", text) for key, text in told.items() if text}
        if gpu.parent_port is not None:
            keys["parent"] = self.source.at(f"{path}.parentPort", gpu.parent_port)
        return keys

    def _translate_limits(self, gpu: Gpu, path: str) -> Keys:
        """Return the limits of video memory: what is said, and arcd's own for a new vGPU."""
        by_size = gpu.gpu_type is GpuType.MDEV and not gpu.mdev_type
        least, most = NEW_GPU_MIB if by_size else (None, None)
        limits = {
            "minVRam": least if gpu.min_vram is None else gpu.min_vram,
            "maxVRam": most if gpu.max_vram is None else gpu.max_vram,
        }
        return {
            key: self.source.at(f"{path}.{key}", limit)
            for key, limit in limits.items()
            if limit is not None and limit > 0
        }

    def _translate_types(self, gpu: Gpu, path: str) -> Keys:
        keys: Keys = {"vendor": "amd"}
        if gpu.acceptable_types:
            place = f"{path}.acceptableTypes"
            types: list[Value] = [
                self.source.at(f"{place}[{number}]", name)
                for number, name in enumerate(gpu.acceptable_types)
            ]
            keys["acceptableTypes"] = self.source.at(place, types)
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
            mac = self.source.at(f"nics[{number}].mac", nic.mac)
            cards.append(self.source.at(f"nics[{number}]", {"type": "vf", "mac": mac}))
        self.draft.keys["networks"] = cards

    def _list_forwards(self) -> list[Value]:
        exposed = self.config.connectivity.exposed_ports
        taken = {(str(port.protocol), port.host) for port in exposed}
        forwards: list[Value] = []
        ssh = self.config.ssh_port
        # Files of before sshPort have that forward among the others.
        known = not self.source.says("sshPort") and any(port.guest == SSH for port in exposed)
        same = any((port.host, port.guest) == (ssh, SSH) for port in exposed)
        if (
            ssh > 0
            and not known
            and not same
            and (self.source.says("sshPort") or ("tcp", ssh) not in taken)
        ):
            forwards.append(self.source.at("sshPort", f"tcp:127.0.0.1:{ssh}:{SSH}"))
        for number, port in enumerate(exposed):
            text = f"{port.protocol}:127.0.0.1:{port.host}:{port.guest}"
            forwards.append(self.source.at(f"connectivity.exposedPorts[{number}]", text))
        return forwards

    def _translate_display(self) -> None:
        config, keys = self.config, self.draft.keys
        vnc = config.vnc_port in VNC_PORTS
        if config.spice:
            place: Keys = {
                "type": "spice",
                "listen": "127.0.0.1",
                "port": self.source.at("spicePort", config.spice_port),
            }
            keys["display"] = self.source.at("spice", place)
            if config.nographics:
                self._note("nographics", "with SPICE the guest has a VGA card too")
        elif vnc:
            port = self.source.at("vncPort", config.vnc_port)
            keys["display"] = self.source.at(
                "vncPort", {"type": "vnc", "listen": "127.0.0.1", "port": port}
            )
            self._note(
                "vncPort",
                "VNC listens on 127.0.0.1 only, arcd listened on every address without a password",
            )
        elif not config.nographics:
            keys["display"] = self.source.at("nographics", "vnc")
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
            keys["lookingGlass"] = self.source.at("introspect", size)
            keys["audio"] = self.source.at("introspect", "scream")

    def _translate_share(self) -> None:
        if self.config.shareddir is None:
            return
        folder = self._expand(self.config.shareddir, "shareddir")
        share: Keys = {"path": self.source.at("shareddir", folder), "tag": "shared"}
        self.draft.keys["shares"] = self.source.at("shareddir", [share])
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
            mark = self.source.mark(path)
            name = command.arg.lstrip("-")
            if name == "cpu" and re.fullmatch("[A-Za-z0-9._+-]+(,[A-Za-z0-9._=+-]+)*", value):
                cpus = self.draft.keys["cpus"]
                assert isinstance(cpus, At)
                assert isinstance(cpus.value, dict)
                cpus.value["model"] = self.source.at(path, value)
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
            self.draft.keys["qemu"] = {"args": self.source.at("commands", args)}

    def _rename_devices(self, value: str, made_here: frozenset[str]) -> str:
        """Return an option's value with arcsup's ids of the GPUs for those of the file."""
        for number, gpu in reversed([*enumerate(self.config.gpus)]):
            if gpu.gpu_type is GpuType.MDEV and gpu.dev_id not in made_here:
                value = value.replace(f"device.{gpu.dev_id}.", f"device.gpu{number}.")
        return value

    def _note_the_rest(self) -> None:
        config = self.config
        if config.startintro:
            self._note(
                "startintro",
                "the daemon starts no viewer: `arcsup start FILE` and `arcsup view` do",
            )
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
                self.draft.refuse(self.source.mark(path), path, f"{address!r}: {error}")
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
