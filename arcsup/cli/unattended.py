"""The options of an installation that asks nobody, and what they and a prompt tell."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import click

from arcsup.errors import NoSuchObject, NotPermitted, UsageError

if TYPE_CHECKING:
    from arcsup.cli.answers import Told

T = TypeVar("T", bound=Callable[..., object])

KINDS = ("windows", "debian", "cloud-init")


class UnattendedOptions(TypedDict):
    """What ``unattended_options`` gives a verb; None where not given."""

    unattended: str | None
    user: str | None
    password_file: Path | None
    ssh_key: Path | None
    locale: str | None
    keyboard: str | None
    timezone: str | None
    windows_version: str | None
    edition: str | None
    product_key_file: Path | None


_OPTIONS: dict[str, tuple[str, type[Path] | None, str]] = {
    "--product-key-file": ("FILE", Path, "Windows: a file with the product key."),
    "--edition": ("NAME", None, "Windows: which of the ISO's, such as 'Windows 11 Pro'."),
    "--windows-version": ("NAME", None, "Windows: virtio-win's word, such as w10.  [w11]"),
    "--timezone": ("NAME", None, "As the guest's system calls it.  [UTC]"),
    "--keyboard": ("LAYOUT", None, "Linux: the keyboard's layout.  [us]"),
    "--locale": ("NAME", None, "Language and region.  [en_US]"),
    "--ssh-key": ("FILE", Path, "Linux: public keys that may log in as the user."),
    "--password-file": ("FILE", Path, "The user's password; else it is asked for."),
    "--user": ("NAME", None, "The first user, who may administer the guest.  [user]"),
}


def unattended_options(command: T) -> T:
    """Add the options of UnattendedOptions to a verb."""
    for option, (metavar, path, text) in _OPTIONS.items():
        kind = click.Path(path_type=Path, readable=False) if path is not None else str
        command = click.option(option, metavar=metavar, type=kind, help=text)(command)
    kinds = click.Choice(KINDS)
    return click.option("--unattended", type=kinds, help="Install without asking.")(command)


def check_no_wishes(options: UnattendedOptions) -> None:
    """Raise UsageError for a wish that nobody would look at."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --unattended")


def read_wishes(options: UnattendedOptions) -> "Told":
    """Return what the options say; the password is read from its file, or asked for.

    Raises UsageError, NoSuchObject, NotPermitted.
    """
    from arcsup.cli.answers import Told

    key_file, ssh_file = options["product_key_file"], options["ssh_key"]
    return Told(
        password=_read_password(options["password_file"]),
        user=options["user"] or "user",
        locale=options["locale"] or "en_US",
        keyboard=options["keyboard"] or "us",
        timezone=options["timezone"] or "UTC",
        ssh_keys=_read(ssh_file) if ssh_file else "",
        version=options["windows_version"] or "w11",
        edition=options["edition"] or "",
        product_key=_read(key_file).strip().upper() if key_file else "",
    )


def _read_password(file: Path | None) -> str:
    if file is not None:
        # Editors end a file with a newline, which nobody types at a login.
        return _read(file).rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for a password", "--password-file FILE")
    answer: str = click.prompt(
        "Password of the guest's user", hide_input=True, confirmation_prompt=True, err=True
    )
    return answer


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        raise NoSuchObject(f"there is no file {file}") from None
    except PermissionError:
        raise NotPermitted(f"{file}: you may not read it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {getattr(error, 'strerror', '') or 'not UTF-8 text'}") from None
