"""What setup may do to a host: values that say it, and can say how it is taken back."""

from attrs import frozen


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
    """Write a file that is not there; taken back while it is as it was written."""

    path: str
    content: str
    mode: int = 0o644

    def __str__(self) -> str:
        return f"write {self.path}"


@frozen
class ReplaceFile:
    """Change a file from ``before`` to ``after``; taken back while it is as it was written."""

    path: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"change {self.path} from {self.before.strip()!r} to {self.after.strip()!r}"


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
class RunCommand:
    """Run a program after other actions (``apply``), or when those are taken back (``undo``)."""

    apply: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"run {' '.join(self.apply or self.undo)}"


Action = (
    CreateDirectory
    | SecureDirectory
    | CreateFile
    | ReplaceFile
    | InstallPackages
    | CreateGroup
    | RunCommand
)


def does_now(action: Action) -> bool:
    """Tell whether an action does anything before it is taken back."""
    return not isinstance(action, RunCommand) or bool(action.apply)
