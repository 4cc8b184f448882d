"""Run pytest in the guest: the arguments are in the output folder, the results go there."""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType


class NoHypothesis(MetaPathFinder):
    """Hide hypothesis: pytest-trio imports it where it is, which takes 16 s under TCG."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Refuse one module and leave the others to the next finder."""
        if fullname == "hypothesis":
            raise ModuleNotFoundError("there is no hypothesis in the lab", name=fullname)


def main() -> int:
    """Pytest's exit status."""
    sys.meta_path.insert(0, NoHypothesis())
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    output = Path(os.environ["ARCSUP_LAB"])
    arguments = (output / "arguments").read_text().split("\0")[:-1]
    # T="tests/lab/test_mdev.py::test_x" stands for itself, T="-k mdev" for a choice among all.
    is_named = any(Path(argument.split("::")[0]).exists() for argument in arguments)
    options = ["-p", "pytest_trio.plugin", "-p", "no:cacheprovider"]
    # What takes two minutes in here may be slow and not stuck.
    options += ["-o", "faulthandler_timeout=600"]
    options += [f"--junit-xml={output}/junit.xml", *([] if is_named else ["tests/lab"])]
    try:
        return int(pytest.main([*options, *arguments]))
    finally:
        (output / "finished").touch()


if __name__ == "__main__":
    sys.exit(main())
