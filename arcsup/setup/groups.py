"""Groups and users of the host, read from its own files: getgrnam(3) would ask about this one."""

from attrs import frozen

from arcsup.setup.host import Host


@frozen
class Group:
    """A group and the users that were put into it."""

    name: str
    members: tuple[str, ...]


def find_group(host: Host, name: str) -> Group | None:
    """Return a group, None when there is none. Source: group(5)."""
    for line in host.read("/etc/group").splitlines():
        words = line.split(":")
        if len(words) == 4 and words[0] == name:
            return Group(name, tuple(member for member in words[3].split(",") if member))
    return None


def has_user(host: Host, name: str) -> bool:
    """Tell whether there is a user of that name. Source: passwd(5)."""
    lines = host.read("/etc/passwd").splitlines()
    return any(line.partition(":")[0] == name for line in lines)
