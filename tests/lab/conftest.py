"""Fixtures of the lab; see README.md. Collected only inside the lab's guest."""

import os

collect_ignore_glob = [] if "ARCSUP_LAB" in os.environ else ["test_*.py"]
