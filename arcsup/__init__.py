"""arcsup: YAML files in, supervised QEMU virtual machines with their share of a GPU out."""

__version__ = "0.1.0"
