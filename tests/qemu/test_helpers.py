"""Helpers beside a real QEMU: they serve from the first moment, and end with it."""

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
from attrs import evolve

from arcsup.model import Share
from arcsup.vm.commandline import build_command_line, expected_devices
from arcsup.vm.shares import check_share, find_virtiofsd, virtiofs_helper
from arcsup.vm.sockets import listen_unix
from arcsup.vm.tpm import HelperCommand, create_tpm_folder, find_swtpm, tpm_folder, tpm_helper
from tests.qemu.test_commandline import SMALL, find_everything, peripherals, running


@asynccontextmanager
async def helping(helper: HelperCommand) -> AsyncIterator[trio.Process]:
    """Start a helper; it must have ended by itself soon after the block."""
    process = await trio.lowlevel.open_process(
        helper.argv, pass_fds=helper.pass_fds, stdin=subprocess.DEVNULL
    )
    try:
        yield process
        with trio.fail_after(10):
            await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="needs swtpm")
async def test_a_tpm_serves_ends_with_qemu_and_keeps_its_state(short_dir: Path) -> None:
    vm, folder = evolve(SMALL, tpm=True), tpm_folder(short_dir, SMALL.name)
    create_tpm_folder(folder)
    for _ in range(2):
        host = await find_everything(vm, short_dir, listen_unix)
        tpm = listen_unix(short_dir / "tpm.sock")
        host = evolve(host, sockets=evolve(host.sockets, tpm=tpm))
        helper = tpm_helper(find_swtpm(), folder, tpm, short_dir / "tpm.log")
        async with helping(helper):
            tpm.close()
            async with running(build_command_line(vm, host), host.sockets) as qmp:
                (found,) = await qmp.execute("query-tpm")

                assert found["model"] == "tpm-crb"
                assert "tpm0" in expected_devices(vm, host) & await peripherals(qmp)
                await qmp.execute("quit")

    assert [file.stat().st_mode & 0o777 for file in folder.glob("*.permall")] == [0o600]


async def test_a_share_is_served_and_its_server_ends_with_qemu(short_dir: Path) -> None:
    virtiofsd = await find_virtiofsd(root=os.geteuid() == 0)
    if virtiofsd is None:
        pytest.skip("needs a virtiofsd that can run here")
    (short_dir / "a,b").mkdir()
    share = Share("a,b", "tag")
    vm = evolve(SMALL, shares=(share,))
    host = await find_everything(vm, short_dir, listen_unix)
    listener = listen_unix(short_dir / "share0")
    host = evolve(host, sockets=evolve(host.sockets, shares=(listener,)))
    helper = virtiofs_helper(virtiofsd, share, check_share(share, short_dir), listener, 0)
    async with helping(helper):
        listener.close()
        async with running((*build_command_line(vm, host), "-S"), host.sockets) as qmp:
            assert "share0" in await peripherals(qmp)
            await qmp.execute("quit")


def test_qemu_takes_no_server_of_a_share_that_it_could_connect_to_again(short_dir: Path) -> None:
    """Why a virtiofsd that has died is not started again: should this fail, it could be."""
    argv = [
        "qemu-system-x86_64", "-machine", "q35,accel=tcg,memory-backend=memory", "-m", "64",
        "-object", "memory-backend-memfd,id=memory,size=64M,share=on",
        "-nodefaults", "-display", "none",
        "-chardev", f"socket,id=share,path={short_dir}/share.sock,reconnect=1",
        "-device", "vhost-user-fs-pci,chardev=share,tag=share",
    ]  # fmt: skip
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(f"{short_dir}/share.sock")
        server.listen()
        ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    assert ended.returncode == 1
    assert "Failed to set msg fds" in ended.stderr
