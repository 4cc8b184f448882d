"""One look at the host's GPUs: the daemon's, or our own at the device tree."""

from collections.abc import Callable
from typing import TypeVar

import click

from arcsup.cli.output import plain
from arcsup.cli.places import PlaceOptions, find_places, place_options
from arcsup.cli.session import Session, tell_error
from arcsup.control.client import Client, find_socket
from arcsup.control.shapes import InventoryJson
from arcsup.errors import NoSuchObject

T = TypeVar("T", bound=Callable[..., object])


def look_options(command: T) -> T:
    """Add ``--offline`` and the places; with ``--sysfs`` the daemon is not asked either."""
    offline = click.option(
        "--offline", is_flag=True, help="Look at the device tree without a daemon."
    )
    return offline(place_options(command))


def client_of(session: Session, options: PlaceOptions) -> Client:
    """Return the client of the daemon that the options mean."""
    run = options["run"]
    return session.client if run is None else Client(find_socket(str(run)))


def asks_daemon(*, offline: bool, options: PlaceOptions) -> bool:
    """Tell whether the daemon is to be asked: it knows its own device tree only."""
    return not offline and options["sysfs"] is None


def look_at_gpus(session: Session, *, offline: bool, options: PlaceOptions) -> InventoryJson:
    """Return the inventory. Raises NoSuchObject without a device tree, DaemonUnreachable."""
    if asks_daemon(offline=offline, options=options):
        seen: InventoryJson = client_of(session, options).get("/v1/inventory")
        return seen
    # Only here, because it needs the libraries of the daemon.
    from arcsup.control.gpus import view_inventory
    from arcsup.host.host_use import find_card_use
    from arcsup.host.inventory import observe_host
    from arcsup.plan.functions import with_host_use

    places, _ = find_places(session.run, **options)
    if not places.sysfs.is_dir():
        raise NoSuchObject(f"there is no device tree at {places.sysfs}", "--sysfs names another")
    found = observe_host(places.sysfs)
    return view_inventory(with_host_use(found, find_card_use(places.sysfs, found.cards)))


def or_dash(value: int | None) -> str:
    """Return a number, or what stands for none in a table."""
    return "-" if value is None else str(value)


def tell_faults(seen: InventoryJson) -> None:
    """Tell on stderr which entries of the device tree could not be read."""
    for fault in seen.get("faults", ()):
        tell_error(plain(fault))
