"""What a run in a mode needs beside the VM's file."""

import os
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.errors import Refused
from arcsup.model import Disk
from arcsup.plan.mode import Mode, Purpose
from arcsup.vm.modes import check_mode
from tests.small_host import places_in
from tests.vm_samples import make_vm


@pytest.mark.parametrize("as_base", [False, True])
def test_nobody_waits_for_an_installer_that_is_a_pipe(tmp_path: Path, as_base: bool) -> None:
    pipe = str(tmp_path / "iso")
    os.mkfifo(pipe)
    vm = evolve(make_vm("a"), disks=(Disk("a.qcow2"),))
    mode = Mode(Purpose.CREATE, base=pipe) if as_base else Mode(Purpose.CREATE, media=(pipe,))

    with pytest.raises(Refused, match="cannot read it: is a FIFO, expected a file or a block dev"):
        check_mode(mode, vm, tmp_path / "a.yaml", places_in(tmp_path), again=False)
