"""One virtual machine: command line, process, QMP, supervision and the files it needs."""
