"""Whether a local connection comes from a command that a worker runs.

Whoever reaches the API from this machine counts as its owner. A worker's command is on this machine too, and
does what a web page or a file may have talked it into: it must not read other people's conversations there.

Flow:    accepted connection -> is_from_command -> served or refused
Floor:   tools
"""

import os
import sys
from pathlib import Path

from spacebot.tools.subprocesses import MARK, carries, children_of

_TCP_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def has_commands() -> bool:
    """Whether any command runs; quick enough to ask for each connection. Linux only: elsewhere always False."""
    return sys.platform == "linux" and bool(children_of(os.getpid()))


def is_from_command(peer_port: int, own_port: int) -> bool:
    """Whether the other end of a loopback connection belongs to a command, or to anything that it started.

    Blocking, some milliseconds. A command is a child that carries the mark which `run_command` gives; everything
    below it counts, with or without the mark.
    """
    commands = [pid for pid in children_of(os.getpid()) if carries(str(pid), f"{MARK}=".encode())]
    if not commands or (inode := _inode(peer_port, own_port)) is None:
        return False
    wanted = f"socket:[{inode}]"
    seen: set[int] = set()
    while commands:
        pid = commands.pop()
        if pid in seen:
            continue
        seen.add(pid)
        if _holds(pid, wanted):
            return True
        commands.extend(_below(pid))
    return False


def _below(pid: int) -> list[int]:
    """Children of a process, of whichever of its threads."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [child for task in tasks for child in children_of(pid, task)]


def _inode(peer_port: int, own_port: int) -> str | None:
    """The socket that talks from `peer_port` to `own_port`, as the system's table knows it."""
    for table in _TCP_TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
            if (local, remote) == (peer_port, own_port):
                return fields[9]
    return None


def _holds(pid: int, wanted: str) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(os.readlink(entry.path) == wanted for entry in entries)
    except OSError:
        return False  # it just ended
