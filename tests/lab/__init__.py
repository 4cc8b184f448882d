"""Tests on real kernel devices; they run inside the lab's guest (tests/lab/README.md)."""
