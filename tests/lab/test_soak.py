"""Random steps on real devices: whatever happens, everything becomes as it is wanted again.

``make soak STEPS=1000 SEED=7`` makes more of them, and others.
"""

import sys
from pathlib import Path

import pytest

from tests.lab.soak import Soak
from tests.qemu.daemon import Daemon

BETWEEN = 30
"""Steps after which everything has to be as it is wanted before there are more."""


@pytest.mark.usefixtures("simulate")
def test_random_steps_end_converged_and_leave_nothing(
    daemon: Daemon, cards: list[Path], request: pytest.FixtureRequest
) -> None:
    seed, number = request.config.getoption("--soak-seed"), request.config.getoption("--soak-steps")
    soak = Soak(daemon, cards, seed)
    try:
        for done in range(1, number + 1):
            soak.step()
            if done % BETWEEN == 0 and done < number:
                soak.settle()
        soak.finish()
    except BaseException:
        story = "\n".join(soak.steps)
        sys.stderr.write(f"the steps of seed {seed}:\n{story}\n")
        raise
    finally:
        soak.clean_up()
