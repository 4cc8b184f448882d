"""Passwords as Linux installers take them: hashed, so that no file holds what was typed."""

import ctypes
import ctypes.util
import secrets

from arcsup.errors import Terminal

_SCHEME = "$6$"
"""SHA-512 of crypt(5), which every Linux distribution's libcrypt knows."""


def hash_password(password: str) -> str:
    """Return the crypt(3) hash of a password. Raises Terminal where there is no libcrypt.

    Python's own module for this ended with 3.12.
    """
    name = ctypes.util.find_library("crypt") or "libcrypt.so.1"
    try:
        crypt = ctypes.CDLL(name).crypt
    except (OSError, AttributeError) as error:
        raise Terminal(f"{name} cannot be used: {error}", "install libcrypt1") from error
    crypt.restype = ctypes.c_char_p
    crypt.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    salt = f"{_SCHEME}{secrets.token_hex(8)}"
    hashed = crypt(password.encode(), salt.encode())
    if not isinstance(hashed, bytes) or not hashed.startswith(_SCHEME.encode()):
        raise Terminal(f"{name} does not know SHA-512", "install libcrypt1")
    return hashed.decode()
