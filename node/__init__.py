"""The node: the machine that decides, and the shell (daemon, workers, disk, sockets) that obeys it."""
