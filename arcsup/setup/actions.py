"""What setup may do to a host: values that say it, and can say how it is taken back."""

from attrs import frozen

Command = tuple[str, ...]


@frozen
class CreateDirectory:
    """Make one directory; taken back while it is empty."""

    path: str
    mode: int = 0o755

    def __str__(self) -> str:
        return f"make {self.path} (mode {self.mode:o})"


@frozen
class SecureDirectory:
    """Give a directory to ``uid`` and keep others from writing; remembers what it was."""

    path: str
    uid: int
    mode: int
    uid_before: int
    mode_before: int

    def __str__(self) -> str:
        return f"give {self.path} to user {self.uid}, mode {self.mode:o}"


@frozen
class CreateFile:
    """Write a file that is not there; taken back while it is as it was written.

    ``then`` is run each time, because somebody reads the file only when told.
    """

    path: str
    content: str
    mode: int = 0o644
    then: tuple[Command, ...] = ()

    def __str__(self) -> str:
        return f"write {self.path}{_tell_commands(self.then)}"


@frozen
class ReplaceFile:
    """Change a file from ``before`` to ``after``, and back; ``then`` as with CreateFile."""

    path: str
    before: str
    after: str
    then: tuple[Command, ...] = ()

    def __str__(self) -> str:
        change = f"change {self.path} from {self.before.strip()!r} to {self.after.strip()!r}"
        return change + _tell_commands(self.then)


@frozen
class InstallPackages:
    """Install packages with a manager of ``packages.MANAGERS``, optional ones where known."""

    manager: str
    packages: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [f"install with {self.manager}:", *self.packages]
        return " ".join([*words, *(f"[{name}]" for name in self.optional)])


@frozen
class CreateGroup:
    """Make a group of the system; taken back while it has no members."""

    name: str

    def __str__(self) -> str:
        return f"make group {self.name}"


@frozen
class CreateUser:
    """Make a user of the system without a home, in a group of its own name and in ``groups``."""

    name: str
    groups: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f" in {', '.join(self.groups)}" if self.groups else ""
        return f"make user {self.name}{more}"


@frozen
class RunCommand:
    """Run a program; ``undo`` takes back what it does."""

    apply: Command
    undo: Command

    def __str__(self) -> str:
        return f"run {' '.join(self.apply)}"


Action = (
    CreateDirectory
    | SecureDirectory
    | CreateFile
    | ReplaceFile
    | InstallPackages
    | CreateGroup
    | CreateUser
    | RunCommand
)


def _tell_commands(commands: tuple[Command, ...]) -> str:
    return "".join(f", then run {' '.join(command)}" for command in commands)
