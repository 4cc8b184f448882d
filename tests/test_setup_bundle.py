"""The support archive: everything that helps, and no secret."""

import json
import tarfile
from pathlib import Path

import pytest

from arcsup.errors import ArcsupError, Refused
from arcsup.setup.bundle import TAIL, write_bundle
from arcsup.setup.host import Host
from arcsup.setup.redact import REMOVED, remove_secrets
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor
from tests.host_tree import create_host, read_tree, write

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEsecret\nmore\n-----END RSA PRIVATE KEY-----"

SECRETS = [
    'vncPassword: "hush hush"',
    "password: hush",
    '{"execute": "set_password", "arguments": {"password": "hush", "protocol": "vnc"}}',
    "-spice port=5900,password=hush,seamless-migration=on",
    "--api-key hush --verbose",
    "token=hush",
    "Authorization: Bearer hush",
    "curl https://ann:hush@example.org/image.qcow2",
    "passwd: $6$hush$Jx0cV9hush.hush/0123456789",
    "ssh_keys: |\n  " + KEY.replace("\n", "\n  ").replace("secret", "hush"),
    "userPassword: |\n  hush\n  hush\nmemory: 1\n",
    "LICENSE_KEY = hush",
    # Options and their values as lists have them: JSON, Python, YAML.
    '["curl", "--password", "hush hush", "-v"]',
    '[\n "--api-key",\n "hush"\n]',
    "['swtpm', '--token', 'hush']",
    "[--token, hush]",
    "args:\n  - --password\n  - hush hush\n",
    # QEMU's object of that kind.
    '["-object","secret,id=x,data=hush"]',
    '["-object", "secret,data=hush hush\\"hush,id=x"]',
    "-object secret,id=x,format=raw,data=hu,,hush -machine q35",
    "-object 'secret,id=x,data=hush hush' -machine q35",
    "- secret,id=x,data=hush hush\n",
    "-object qom-type=secret,id=x,data=hush",
    '-object {"qom-type":"secret","id":"x","data":"hush"}',
    '{"data": "hush}hush", "id": "x", "qom-type": "secret"}',
    '{"qom-type": "secret", "id": "x", "props": {"data": "hush"}}',
    json.dumps(json.dumps({"qom-type": "secret", "data": 'hush"hush'})),
    # What is quoted within quotes, once and twice.
    json.dumps({"line": '-spice password="hush hush",port=1'}),
    json.dumps({"line": json.dumps({"password": "hush hush"})}),
    json.dumps(json.dumps(json.dumps({"password": 'hu"hush\\'}))),
    json.dumps(json.dumps(["--password", "hush hush"])),
    json.dumps({"line": json.dumps(["--password", "hush hush"], indent=1)}),
    json.dumps(json.dumps(["-object", "secret,id=x,data=hush hush"])),
    "{'password': 'hush'}",
    '{"tokens": ["hush", "hush"]}',
    "password: 'it''s hush'",
    # A backslash there is nothing but one; in Python it takes the quote's meaning away.
    r"password: 'it\''s hush'",
    r"- password: 'it\''s hush' # hush",
    r"password: 'it\'s hush'",
    r"{type: vnc, password: 'it\''s hush', port: 1}",
    r"""{type: vnc, "password": 'it\''s hush'}""",
    "password: 'it''s\n  hush'",
    "password: hush hush\n",
    "{type: vnc, password: hush hush}",
    "{tokens: [hush, hush]}",
    "tokens: [\n  hush, hush,\n]",
    '{\n "tokens": [\n  "hush",\n  "hush"\n ]\n}',
    "-vnc password=hu,,hush,id=a",
    'password="hush hush',
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_taken_out(text: str) -> None:
    clean = remove_secrets(text)

    assert "hush" not in clean
    assert REMOVED in clean


@pytest.mark.parametrize(
    "text",
    [
        "memory: 2GiB\nkeyboard: de\n",
        "the password file is missing",
        "usb 1-2: New USB device found, idVendor=046d",
        "intel_iommu=on iommu=pt",
        '{"state": "running", "pid": 12}',
        "https://example.org/a:b/c",
        "-object secret,id=x,file=/run/key -drive data=on",
        '["-object", "secret,id=x,file=/run/key", "-device", "x,data=on"]',
        '{"event": "RESUME", "data": {"id": "x"}}',
        '{"qom-type": "iothread", "data": "here"}',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert remove_secrets(text) == text


def test_what_follows_a_secret_stays() -> None:
    assert remove_secrets("userPassword: |\n  hush\nmemory: 1\n").endswith("\nmemory: 1\n")
    assert remove_secrets("-vnc password=hush,id=a").endswith(",id=a")
    assert remove_secrets("password: 'hush\\'\nname: 'web'").endswith("\nname: 'web'")
    line = "-object secret,id=x,data=hush -machine q35"
    assert remove_secrets(line) == f"-object secret,id=x,data={REMOVED} -machine q35"


def test_json_is_json_without_its_secrets_too() -> None:
    inner = {"password": "hush hush", "argv": ["--token", "hush", "secret,data=hush", "-v"]}

    clean = remove_secrets(json.dumps({"line": json.dumps(inner), "state": "running"}))

    assert json.loads(clean)["state"] == "running"
    assert "-v" in clean
    assert "hush" not in clean


def test_a_log_of_quotes_and_backslashes_is_read_in_a_moment() -> None:
    for text in ("password: " + "\\" * 50000, "password='" * 5000, 'secret,data="' * 5000):
        assert "hush" not in remove_secrets(text + '\npassword="hush')


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = create_host(tmp_path / "host")
    write(host.root, "etc/arcsup/arcsup.yaml", "group: arcsup\n")
    write(host.root, "etc/arcsup/vms/web.yaml", "display: {type: vnc, password: hush}\n")
    write(host.root, "var/lib/arcsup/setup.json", '{"version": 1, "entries": []}')
    write(host.root, "var/lib/arcsup/vms/web.json", '{"name": "web"}')
    write(host.root, "var/lib/arcsup/images/disk.qcow2", "not ours to give away")
    write(
        host.root, "var/log/arcsup/web/qemu.log", "old\n" + "x" * TAIL + "\nthe end, token=hush\n"
    )
    (host.places.vms / "link.yaml").symlink_to("/etc/shadow")
    return host


def read_bundle(file: Path) -> dict[str, str]:
    with tarfile.open(file) as tar:
        members = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar}
        return {name: stream.read().decode() for name, stream in members.items() if stream}


def test_it_has_findings_inventory_files_records_and_logs(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "help.tar.gz"
    before = read_tree(host.root)

    names = write_bundle(host, file, [{"check": "qemu"}])

    found = read_bundle(file)
    assert set(names) == set(found)
    assert json.loads(found["doctor.json"]) == [{"check": "qemu"}]
    assert json.loads(found["inventory.json"])["version"] == 1
    assert found["versions.txt"].startswith("arcsup ")
    assert found["config/arcsup.yaml"] == "group: arcsup\n"
    assert found["vms/web.yaml"] == f"display: {{type: vnc, password: {REMOVED}}}\n"
    assert {"state/setup.json", "state/vms/web.json", "host/proc/cmdline"} <= set(found)
    assert found["log/web/qemu.log"].endswith(f"\nthe end, token={REMOVED}\n")
    assert len(found["log/web/qemu.log"]) < TAIL + 10
    assert not any("hush" in text for text in found.values())
    # What a link leads to, and what is on disks, is nobody's business.
    assert not any(name.endswith(("link.yaml", ".qcow2")) for name in found)
    assert read_tree(host.root) == before
    assert file.stat().st_mode & 0o777 == 0o600


def test_nothing_is_overwritten(host: Host, tmp_path: Path) -> None:
    file = write(tmp_path, "help.tar.gz", "mine")

    with pytest.raises(Refused, match="is there already"):
        write_bundle(host, file, [])
    assert file.read_text() == "mine"
    with pytest.raises(ArcsupError, match="No such file"):
        write_bundle(host, tmp_path / "nowhere/help.tar.gz", [])


def test_doctor_writes_it_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: Host
) -> None:
    cli = Cli(FakeSupervisor(), tmp_path / "nowhere", capsys)

    result = cli("doctor", "--root", str(host.root), "--json", "--bundle", str(tmp_path / "b.tgz"))

    assert "secrets removed" in result.err
    packed = json.loads(read_bundle(tmp_path / "b.tgz")["doctor.json"])
    assert [entry["check"] for entry in packed] == [entry["check"] for entry in result.json]


def test_what_the_daemon_does_not_answer_is_told_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(FakeSupervisor(), tmp_path / "nowhere", capsys)
    names = {"--vms": "vms", "--run": "run", "--state": "state", "--log-dir": "log"}
    options = [word for option, name in names.items() for word in (option, str(tmp_path / name))]

    result = cli("doctor", *options, "--json", "--bundle", str(tmp_path / "b.tgz"))

    assert result.code in {0, 1}
    assert read_bundle(tmp_path / "b.tgz")["daemon/vms.json"].startswith("no daemon at")


def test_a_list_of_secrets_that_a_cut_log_does_not_end_is_taken_out_to_the_end() -> None:
    text = "password: [" * 3 + "hush\nhush"

    assert remove_secrets(text) == f"password: {REMOVED}"


def test_an_option_after_a_line_of_dashes_is_found() -> None:
    assert "hush" not in remove_secrets(f"{'-' * 60}\n--password hush\n")
