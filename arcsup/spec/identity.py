"""Identities that are derived, so that a VM has the same ones for ever without a store."""

import hashlib
from uuid import UUID, uuid5

from arcsup.model import MacAddress

_NAMESPACE = UUID("5f0c6b1e-9a53-4b6c-8a63-3f6d9f1c2a70")


def derive_uuid(machine_id: str, name: str) -> UUID:
    """Return the UUID of a VM from the host's machine id (machine-id(5)) and the VM's name.

    The machine id is hashed and never shows, as machine-id(5) asks of programs.
    """
    return uuid5(uuid5(_NAMESPACE, machine_id.strip().lower()), name)


def derive_mac(vm_uuid: UUID, index: int) -> MacAddress:
    """Return the address of a VM's network card ``index``, in QEMU's range 52:54:00."""
    digest = hashlib.sha256(vm_uuid.bytes + index.to_bytes(4, "big")).digest()
    return MacAddress("52:54:00:" + ":".join(f"{octet:02x}" for octet in digest[:3]))
