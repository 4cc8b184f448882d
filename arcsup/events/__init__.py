"""What tells the daemon to look: files and the kernel. Events say look, never do."""
