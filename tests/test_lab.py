"""The lab: tests/lab runs in a guest with real devices, as one test among the others.

What the guest said is in .cache/lab; tests/lab/README.md tells how to look further.
"""

import os
import subprocess

import pytest

from tests.guest import TOP

RUN = TOP / "tests/lab/run"


def prepare() -> None:
    """Install, download and build what is missing; say in one line what cannot be got."""
    result = subprocess.run([RUN, "--prepare"], stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        why = (result.stderr.strip() or f"{RUN} --prepare failed").splitlines()[-1]
        if os.environ.get("CI"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)


@pytest.mark.guest
def test_real_devices_keep_every_promise_of_the_lab(capfd: pytest.CaptureFixture[str]) -> None:
    prepare()
    # Its output is pytest's and a person watches it: the guest takes minutes.
    with capfd.disabled():
        status = subprocess.run([RUN], check=False).returncode
    assert status == 0, f"see {TOP / '.cache/lab/host'}"
