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
        reason = f"networks[0]: no virtual function is free ({NETWORK}: "
        daemon.wait_for("one", "waiting")
        # Before the look at the devices, it is about to start.
        daemon.until(lambda: reason in daemon.status("one")["reason"], reason)
        assert daemon.state_of("one") == "waiting"
        why = daemon.arcsup("why", "one")
        assert "virtual function" in why.stdout

        config.write_text("{}\n")
        daemon.arcsup("reload")
        daemon.until(lambda: GPU not in findings(), "what is not asked for is not missed")


def test_quotas_are_set_and_told_and_put_back(short_dir: Path) -> None:
    tree = Tree(short_dir / "sys")
    files = {"sriov_totalvfs": "2\n"}
    pf = tree.populate_pci(GPU, ids="8086:e20b", driver="xe", group=1, files=files)
    tree.populate_vfs(pf, [f"{GPU[:-1]}1", f"{GPU[:-1]}2"], first_group=2)
    quota_files = [tree.root / f"{pf}/sriov_admin/vf{n}/profile/vram_quota" for n in (1, 2)]
    for file in quota_files:
        tree.write(str(file.relative_to(tree.root)), f"{6 << 30}\n")
    config = short_dir / "config.yaml"
    config.write_text(f"gpus: [{{match: '{GPU}', vfQuota: {{vRam: 2GiB}}}}]\n")
    vf = "memory: 64\naccel: tcg\nnetworks: []\ngpus: [{kind: vf, minVRam: 4GiB}]\n"

    def have(mib: int) -> bool:
        return [file.read_text().strip() for file in quota_files] == [str(mib << 20)] * 2

    with running_daemon(short_dir, "--sysfs", str(tree.root), "--config", str(config)) as daemon:
        daemon.until(lambda: have(2048), "they have what the file says")
        daemon.drop("large", vf)
        reason = "less video memory than minVRam 4096 MiB"
        daemon.wait_for("large", "waiting")
        daemon.until(lambda: reason in daemon.status("large")["reason"], "it waits for more")
        ((card,),) = [json.loads(daemon.arcsup("gpu", "list", "--json").stdout)]
        assert [it["vramMiB"] for it in card["vfs"]["functions"]] == [2048, 2048]

        (daemon.vms / "large.yaml").unlink()
        daemon.wait_for("large", "gone")
        config.write_text("{}\n")
        daemon.arcsup("reload")
        daemon.until(lambda: have(6144), "they have what they had before")
        journal = daemon.state / "vfs.json"
        daemon.until(lambda: not json.loads(journal.read_text())["quotas"], "nothing is kept")
