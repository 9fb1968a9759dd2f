"""The processes: channel, turn, branch, worker."""
