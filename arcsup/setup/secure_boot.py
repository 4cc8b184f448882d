"""Secure Boot: a key of this machine that drivers are signed with, and how it is enrolled.

Sources: mokutil(1), dkms(8) (framework.conf.d, mok_signing_key, mok_certificate), UEFI 2.9 §3.3.
"""

from arcsup.setup.actions import Action, RunCommand
from arcsup.setup.commands import ask_command
from arcsup.setup.host import Host
from arcsup.setup.steps import SetupPlan, create_directories, create_file

VARIABLE = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""In sysfs: four bytes of attributes, then 1 where the firmware lets only signed code run."""

NAME = "arcsup machine owner key"

DKMS_FILE = "/etc/dkms/framework.conf.d/arcsup.conf"

KNOWN_KEYS = (
    ("/var/lib/shim-signed/mok/MOK.priv", "/var/lib/shim-signed/mok/MOK.der"),
    ("/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub"),
)
"""Keys that Ubuntu's shim-signed and DKMS make: DKMS signs with them by itself."""


def is_on(host: Host) -> bool:
    """Tell whether the firmware enforces Secure Boot."""
    try:
        return (host.sysfs / VARIABLE).read_bytes()[-1:] == b"\x01"
    except OSError:
        return False


def plan_signing(host: Host) -> SetupPlan:
    """Return what DKMS needs to sign modules, and how the user enrols the key. () without."""
    if not is_on(host):
        return SetupPlan()
    for key, certificate in KNOWN_KEYS:
        if host.path(key).exists() and host.path(certificate).exists():
            return SetupPlan(notes=_tell_enrolment(host, certificate, ""))
    folder = host.places.state / "mok"
    key, certificate = (host.tell(folder / name) for name in ("MOK.priv", "MOK.der"))
    actions: list[Action] = [*create_directories(folder, 0o700)]
    if not (folder / "MOK.der").exists():
        make = (
            *("openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes"),
            *("-days", "36500", "-subj", f"/CN={NAME}/"),
            *("-keyout", key, "-outform", "DER", "-out", certificate),
        )
        actions.append(RunCommand(make, ("rm", "-f", key, certificate)))
    lines = f"mok_signing_key={key}\nmok_certificate={certificate}\n"
    actions.extend(create_file(host, DKMS_FILE, lines))
    return SetupPlan(tuple(actions), _tell_enrolment(host, certificate, NAME))


def _tell_enrolment(host: Host, certificate: str, name: str) -> tuple[str, ...]:
    """Return the steps that only somebody in front of the screen can do; () once they are done."""
    if host.find_program("mokutil") is None:
        return (f"install mokutil, then run: mokutil --import {certificate}",)
    enrolled = ask_command(host, ("mokutil", "--list-enrolled")) or ""
    if name and name in enrolled:
        return ()
    return (
        "Secure Boot is on: the firmware has to be told of the key that drivers are signed with:",
        f"1. as root: mokutil --import {certificate}, and think of a password for the next boot",
        "2. reboot; a blue screen, MOK management, waits ten seconds for a key press",
        "3. choose Enroll MOK, Continue, Yes; type the password; choose Reboot",
        "4. mokutil --list-enrolled shows it; the driver is loaded from then on",
    )
