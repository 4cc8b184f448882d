"""The daemon carries out what arcsup.yaml says of cards; a kernel that does it is in tests/lab."""

import json
from functools import partial
from pathlib import Path

from tests.qemu.daemon import running_daemon
from tests.trees import Tree

GPU, NETWORK = "0000:41:00.0", "0000:05:00.0"


def populate(tree: Tree) -> None:
    """Make a GPU and a network card whose drivers take a number and make nothing of it."""
    files = {"sriov_totalvfs": "8\n", "sriov_numvfs": "0\n"}
    tree.populate_pci(GPU, pci_class="0x120000", ids="8086:56c0", driver="xe", files=files)
    tree.populate_pci(NETWORK, pci_class="0x020000", ids="8086:10c9", driver="igb", files=files)


def test_the_configured_number_is_written_and_what_comes_of_it_is_said(short_dir: Path) -> None:
    tree = Tree(short_dir / "sys")
    populate(tree)
    config = short_dir / "config.yaml"
    config.write_text(f"gpus: [{{match: '{GPU}', vfs: 4}}, {{match: '{NETWORK}', vfs: 2}}]\n")
    places = ("--sysfs", str(tree.root), "--config", str(config))

    with running_daemon(short_dir, *places) as daemon:
        daemon.drop("one", "memory: 64\naccel: tcg\nnetworks: [{type: vf}]\n")
        wanted = {GPU: 4, NETWORK: 2}

        def findings() -> str:
            return "\n".join(daemon.client.get("/v1/daemon")["findings"])

        def is_said(sentence: str) -> bool:
            return sentence in findings()

        for card, count in wanted.items():
            said = f"{card}: {count} virtual functions were asked for and 0 were made"
            daemon.until(partial(is_said, said), said)
            number = tree.root / f"bus/pci/devices/{card}/sriov_numvfs"
            assert number.read_text().strip() == str(count)
        journal = json.loads((daemon.state / "vfs.json").read_text())["cards"]
        assert set(journal) == set(wanted), "it was written down before"
        waiting = daemon.wait_for("one", "waiting")
        assert f"networks[0]: no virtual function is free ({NETWORK}: " in waiting["reason"]
        why = daemon.arcsup("why", "one")
        assert "virtual function" in why.stdout

        config.write_text("{}\n")
        daemon.arcsup("reload")
        daemon.until(lambda: GPU not in findings(), "what is not asked for is not missed")
