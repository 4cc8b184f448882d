"""Scopes: control groups that systemd makes for programs that somebody else has started.

Sources: org.freedesktop.systemd1(5), "StartTransientUnit()" and "JobRemoved"; systemd.scope(5);
systemd.resource-control(5); sd_booted(3).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import frozen
from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    MatchRule,
    Message,
    message_bus,
    new_method_call,
)
from jeepney.auth import AuthenticationError
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import unwrap_msg

from arcsup.errors import Transient
from arcsup.host.cgroups import Limits, find_group

BOOTED = Path("/run/systemd/system")
"""There where systemd is process 1 (sd_booted(3))."""

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"

PATIENCE = 5.0
"""Seconds for systemd to answer. It takes some milliseconds; while it boots, more."""

_NO_LIMIT = 2**64 - 1
"""CGROUP_LIMIT_MAX of systemd: "infinity"."""

_MANAGER = DBusAddress(
    "/org/freedesktop/systemd1",
    bus_name="org.freedesktop.systemd1",
    interface="org.freedesktop.systemd1.Manager",
)


Property = tuple[str, tuple[str, str | int | Sequence[int] | Sequence[str]]]
"""Its name, and its type (D-Bus's letters) with its value."""


@frozen
class Scopes:
    """Scopes of the manager at the end of ``bus``.

    ``daemon_unit`` is the unit that the daemon is in, "" for none: when the host goes down it is
    stopped first, and stops its VMs gently, before systemd ends what is in the scopes.
    """

    bus: str
    daemon_unit: str
    proc: Path = Path("/proc")

    async def enclose(self, name: str, pids: Sequence[int], limits: Limits) -> str:
        """Start a scope for the programs, and return its group once they are in it.

        With an earlier run's scope systemd may not be done yet, so each has a name of its own;
        drop-ins for all runs of a VM go to ``arcsup-NAME-.scope.d`` (systemd.unit(5)).
        """
        scope = f"arcsup-{name}-{pids[0]}.scope"
        if (group := self._find_group_of(scope, pids[0])) is not None:
            return group
        start = partial(self._start, scope, f"Virtual machine {name}", pids, limits)
        try:
            with trio.fail_after(PATIENCE):
                await trio.to_thread.run_sync(start, abandon_on_cancel=True)
        except trio.TooSlowError:
            raise Transient(f"systemd did not start {scope} within {PATIENCE:g} s") from None
        if (group := self._find_group_of(scope, pids[0])) is None:
            raise Transient(f"systemd has started {scope}, but did not put QEMU into it")
        return group

    def _find_group_of(self, scope: str, pid: int) -> str | None:
        """Return the group of a scope if a process is in it."""
        group = find_group(str(pid), self.proc)
        return group if group is not None and group.endswith(f"/{scope}") else None

    def _start(self, scope: str, description: str, pids: Sequence[int], limits: Limits) -> None:
        properties: list[Property] = [
            ("Description", ("s", description)),
            ("Slice", ("s", "machine.slice")),
            ("PIDs", ("au", list(pids))),
            ("MemoryMax", ("t", limits.memory or _NO_LIMIT)),
            ("TasksMax", ("t", limits.tasks)),
            # It is gone with its last program, even if that was killed.
            ("CollectMode", ("s", "inactive-or-failed")),
        ]
        if self.daemon_unit:
            properties.append(("Before", ("as", [self.daemon_unit])))
        with open_bus(self.bus) as bus:
            _start_unit(bus, scope, properties)


def find_scopes(*, system: bool, booted: Path = BOOTED) -> Scopes | None:
    """Return the way to the manager of the system or of this user; None without systemd."""
    bus = SYSTEM_BUS if system else find_user_bus()
    if not booted.is_dir():
        return None
    unit = (find_group() or "").rpartition("/")[2]
    return Scopes(bus, unit if unit.endswith((".service", ".scope")) else "")


def find_user_bus() -> str:
    """Return the address of this user's bus (sd_bus_open_user(3))."""
    folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={folder}/bus"


@contextmanager
def open_bus(address: str) -> Iterator[DBusConnection]:
    """Talk to a bus in the block. Raises Transient when that fails there or before."""
    try:
        with open_dbus_connection(address, auth_timeout=PATIENCE) as bus:
            yield bus
    except DBusErrorResponse as error:
        said = " ".join(map(str, error.data))
        raise Transient(f"systemd says: {said or error.name}") from error
    except (OSError, AuthenticationError) as error:
        raise Transient(f"{address} does not answer: {error}") from error


def _start_unit(bus: DBusConnection, unit: str, properties: list[Property]) -> None:
    over = MatchRule(type="signal", interface=_MANAGER.interface, member="JobRemoved")
    over.add_arg_condition(2, unit)
    with bus.filter(over) as told:
        # Asked for first: the job may be done before the answer to what started it is read.
        _call(bus, message_bus.AddMatch(over))
        no_further_units: list[tuple[str, list[Property]]] = []
        arguments = (unit, "fail", properties, no_further_units)
        start = new_method_call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
        _call(bus, start)
        _id, _job, _unit, result = bus.recv_until_filtered(told, timeout=PATIENCE).body
    if result != "done":
        raise Transient(f"systemd could not start {unit}: {result}")


def _call(bus: DBusConnection, message: Message) -> None:
    unwrap_msg(bus.send_and_get_reply(message, timeout=PATIENCE))
