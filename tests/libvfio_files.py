"""LibVF.IO files that ask for the GPUs that its users' files ask for, in words of our own."""

from attrs import frozen


@frozen
class Example:
    """One file: its gpus and raw arguments, and the mdev type that satisfies it."""

    gpu: tuple[str, ...]
    type: str
    commands: str = "[]"
    hooks: str = ""

    def text(self, root: str) -> str:
        """Return the file, with its images below ``root``."""
        keys = "\n".join(f"    -\n      {key}" for key in self.gpu)
        return (
            "%YAML 1.2\n%TAG !n! tag:nimyaml.org,2016:\n--- !n!custom:Config\n"
            "name: guest\nstartintro: true\nnographics: true\nspice: true\nspicePort: 5931\n"
            "sshPort: -1\nshowhypervisor: false\nintrospect: looking-glass\nshareddir: !!null ~\n"
            "container: {kernel: guest.arc, state: [], initialSize: 1, iso: !!null ~}\n"
            "cpus: {cores: 1, sockets: 1, threads: 1, ramAlloc: 64}\n"
            f"gpus:\n  -\n{keys}\nroot: {root}\ncommands: {self.commands}\n{self.hooks}"
        )


_SIZED = ("maxVRam: 2000", "minVRam: 1000", "gpuType: sysfsdev")
_TYPED = ("parentPort: !!null ~", "devId: hostdev0")

EXAMPLES = {
    "nvidia-by-size-with-ids": Example(
        (*_SIZED, 'mdevType: ""', *_TYPED, "suffix: Q"),
        "nvidia-63",
        "\n  - arg: '-set'\n    values: ['device.hostdev0.x-pci-device-id=0x1e30']"
        "\n  - arg: '-set'\n    values: ['device.hostdev0.x-pci-sub-device-id=0x12ba']",
    ),
    "nvidia-by-type": Example((*_SIZED, 'mdevType: "nvidia-64"', *_TYPED), "nvidia-64"),
    "intel-by-type": Example(
        (
            *("maxVRam: 9000", "minVRam: 8000", "gpuType: sysfsdev"),
            *("parentPort: !!null ~", 'mdevType: "i915-GVTg_V5_4"', "devId: hostdev0"),
        ),
        "i915-GVTg_V5_4",
    ),
    "network-share": Example(
        (*_SIZED, 'mdevType: ""', *_TYPED, "suffix: Q"),
        "nvidia-63",
        hooks=(
            "startupCommands:\n  - is_root: true\n    list:\n"
            "      - {exec: /bin/true, args: [-i]}\n"
        ),
    ),
}
"""The command line of arcd had the GPU of ``type`` under the id hostdev0."""
