"""cloud-init's NoCloud: what a cloud image does when it boots for the first time.

Source: cloud-init's documentation, "NoCloud" (the volume's label and its two files) and "Cloud
config examples".
"""

import json

import yaml

from arcsup.unattended.wishes import Wishes

LABEL = "cidata"


def write_seed(wishes: Wishes, password_hash: str) -> dict[str, str]:
    """Return the files of the volume, by name. The guest powers off when it has been set up."""
    user: dict[str, object] = {
        "name": wishes.user,
        "gecos": wishes.user,
        "groups": ["sudo", "wheel", "adm"],
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) ALL",
        "lock_passwd": False,
        "hashed_passwd": password_hash,
    }
    if wishes.ssh_keys:
        user["ssh_authorized_keys"] = list(wishes.ssh_keys)
    config = {
        "hostname": wishes.host,
        "locale": f"{wishes.locale}.UTF-8",
        "keyboard": {"layout": wishes.keyboard},
        "timezone": wishes.timezone,
        "users": [user],
        "power_state": {"mode": "poweroff", "timeout": 300},
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    # JSON is YAML, and quotes whatever needs it.
    meta = json.dumps({"instance-id": wishes.host, "local-hostname": wishes.host})
    return {"user-data": f"#cloud-config\n{text}", "meta-data": f"{meta}\n"}
