"""HTTP on the control socket: the server, its client, events and metrics."""
