"""What somebody on the host, or a QEMU that a guest broke out of, may not gain from the daemon."""
