"""The host itself: what it has (doctor), and making it ready for VMs (setup)."""
