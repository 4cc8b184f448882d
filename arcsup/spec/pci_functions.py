"""PCI functions that other systems' files pass, as requests for GPUs.

Those files have addresses, and say nothing of what is there.
"""

import re
from collections.abc import Callable, Collection

from arcsup.spec.draft import At, Keys
from arcsup.spec.faults import Mark

_VIRTUAL = re.compile(r"[0-9a-f]+:(?!00)[0-9a-f]{2}:(?!00)[01][0-9a-f]\.[0-7]")
"""Behind a link there is device 0 alone (PCI Express, 7.3.1); others are routed as functions."""


def ask_for_function(
    address: str,
    mark: Mark,
    passed: Collection[str],
    tell: Callable[[str], None],
    *,
    is_gpu: bool = False,
) -> "Keys | None":
    """Return the request for a function; None for one that comes along with another of ``passed``.

    ``is_gpu`` says that the file tells that it is one.
    """
    if _VIRTUAL.fullmatch(address):
        message = f"{address} is taken for a GPU's virtual function"
        tell(f"{message}: a network card's is `type: vf` in networks")
        return {"kind": "vf", "address": At(address, mark)}
    first = f"{address.rpartition('.')[0]}.0"
    if address != first and first in passed:
        message = f"{address} comes along with {first} as its sound or USB"
        tell(f"{message}; any other function needs an entry of its own in gpus")
        return None
    if not is_gpu:
        message = f"{address} is taken for a whole device: a GPU's virtual function is `kind: vf`"
        tell(f"{message}, a network card's is `type: vf` in networks")
    return {"kind": "passthrough", "address": At(address, mark)}
