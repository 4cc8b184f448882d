"""doctor: every check of the host, under the heading that it is shown with."""

from collections.abc import Iterator

from attrs import frozen

from arcsup.setup.checks import confinement, cpu, gpus, kernel, managers, nvidia, places, qemu
from arcsup.setup.findings import Check, Finding, error
from arcsup.setup.host import Host

CHECKS: dict[str, tuple[Check, ...]] = {
    "Processor": cpu.CHECKS,
    "Kernel": kernel.CHECKS,
    "GPUs": gpus.CHECKS + nvidia.CHECKS,
    "Programs": qemu.CHECKS,
    "arcsup": places.CHECKS + confinement.CHECKS,
    "Other managers": managers.CHECKS,
}
"""Headings in their order. A further part of the host is one line here."""


@frozen
class Examined:
    """A check and what it found."""

    heading: str
    check: Check
    findings: tuple[Finding, ...]


def examine(host: Host, checks: dict[str, tuple[Check, ...]] = CHECKS) -> Iterator[Examined]:
    """Run every check in order; yields each as soon as it is done. Changes nothing."""
    for heading, group in checks.items():
        for check in group:
            yield Examined(heading, check, _run(check, host))


def _run(check: Check, host: Host) -> tuple[Finding, ...]:
    found: list[Finding] = []
    try:
        found.extend(check.run(host))
    except OSError as fault:
        # A device or file can go while it is looked at; the other checks still count.
        do = "run doctor again; as root, if it is a matter of permission"
        found.append(error(f"{check.title}: {fault}", "this could not be checked", do))
    return tuple(found)
