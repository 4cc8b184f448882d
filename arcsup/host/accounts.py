"""Whom QEMU runs as where the daemon is root: a user of the system, or a number nobody else has.

Sources: systemd's "Users, Groups, UIDs and GIDs on systemd Systems" for who hands out which
numbers; path_resolution(7) for how the kernel applies mode bits.
"""

import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

from attrs import evolve, frozen

from arcsup.errors import Terminal

DEFAULT_USER = "arcsup-qemu"
"""The user that ``arcsup setup`` makes."""

UNCLAIMED = range(60578, 61184)
"""Numbers that nobody hands out: between those of systemd-homed and of DynamicUser=."""


@frozen
class Account:
    """A user and the groups that a program runs with. Numbers need no entry in any database."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @classmethod
    def current(cls) -> Self:
        """Return what this process runs as."""
        return cls(os.geteuid(), os.getegid(), tuple(os.getgroups()))

    def may(self, status: os.stat_result, wanted: int) -> bool:
        """Tell whether the mode bits let it do what ``wanted`` (os.R_OK | …) says.

        As in the kernel only the first class that fits counts; access control lists do not.
        """
        if self.uid == 0:
            return True
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid == self.uid:
            mode >>= 6
        elif status.st_gid in (self.gid, *self.groups):
            mode >>= 3
        return mode & wanted == wanted

    def may_open(self, path: Path) -> bool:
        """Tell whether it may read and write a device node; False where there is none."""
        try:
            return self.may(path.stat(), os.R_OK | os.W_OK)
        except OSError:
            return False


@frozen
class Accounts:
    """The accounts of one installation: one for all VMs, or one for each.

    ``shared.gid`` is every VM's group for what several of them may read.
    """

    shared: Account
    per_vm: bool
    seed: str

    def has(self, uid: int) -> bool:
        """Tell whether QEMUs of this installation may run as a user, now or by an earlier choice.

        The numbers that nobody hands out are no person's, whoever's VM has one.
        """
        return uid == self.shared.uid or uid in UNCLAIMED

    def choose(self, name: str, taken: Collection[int]) -> Account:
        """Return whom a VM's programs run as; ``taken`` are the uids of other VMs.

        The same VM gets the same number as long as that is free. Raises Terminal.
        """
        groups = tuple(sorted({*self.shared.groups, *_find_device_groups()}))
        if not self.per_vm:
            return evolve(self.shared, groups=groups)
        number = _find_free_number(f"{self.seed} {name}", {*taken, self.shared.uid})
        return Account(number, number, (self.shared.gid, *groups))


def find_accounts(user: str | None, *, per_vm: bool, seed: str) -> Accounts:
    """Return the accounts: those of ``user``, or of DEFAULT_USER, or of a free number.

    ``seed`` makes the number the same each time. Raises Terminal for a user that does not exist
    or is root.
    """
    try:
        entry = pwd.getpwnam(user or DEFAULT_USER)
    except KeyError:
        if user is not None:
            raise Terminal(
                f"user: there is no user {user} to run QEMU as",
                f"useradd --system {user}, or leave `user` out of the configuration",
            ) from None
        number = _find_free_number(seed, ())
        return Accounts(Account(number, number), per_vm, seed)
    if entry.pw_uid == 0:
        raise Terminal(f"user: {entry.pw_name} is root, as whom QEMU never runs", "name another")
    groups = set(os.getgrouplist(entry.pw_name, entry.pw_gid)) - {entry.pw_gid, 0}
    shared = Account(entry.pw_uid, entry.pw_gid, tuple(sorted(groups)))
    return Accounts(shared, per_vm, seed)


def _find_free_number(seed: str, taken: Collection[int]) -> int:
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") % len(UNCLAIMED)
    numbers: tuple[int, ...] = (*UNCLAIMED[start:], *UNCLAIMED[:start])
    for number in numbers:
        if number not in taken and not _is_known(number):
            return number
    raise Terminal(
        f"no free user number is left of {UNCLAIMED[0]} to {UNCLAIMED[-1]}",
        "that is the most VMs that can run with isolation: per-vm",
    )


def _is_known(number: int) -> bool:
    for find in (pwd.getpwuid, grp.getgrgid):
        try:
            find(number)
        except KeyError:
            continue
        return True
    return False


_DEVICES = ("kvm", "vhost-net", "dri/renderD*")


def _find_device_groups(dev: Path = Path("/dev")) -> Iterable[int]:
    """Yield the groups to which the system gives the devices that any VM may use."""
    for pattern in _DEVICES:
        for node in dev.glob(pattern):
            status = node.stat()
            # Never root's own group: it opens more than this node.
            if status.st_gid != 0 and status.st_mode & 0o060 == 0o060:
                yield status.st_gid
