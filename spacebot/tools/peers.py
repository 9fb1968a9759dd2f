"""Whether a local connection comes from a command that a worker runs.

Whoever reaches the API from this machine counts as its owner. A worker's command is on this machine too, and
does what a web page or a file may have talked it into: it must not read other people's conversations there. Nor
must a page in a worker's browser, whose connections the program itself makes.

Flow:    accepted connection -> is_from_command -> served or refused
Floor:   tools
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spacebot.tools.subprocesses import MARK, carries, children_of, last_command_ended_at

LATE_S = 3.0  # a command may be gone before the last of its connections is accepted

_TCP_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_relayed: dict[int, float] = {}  # local port of a connection made for a page -> until when it counts
_NOBODY = "0"  # the owner in the table when the socket was closed, or its process ended


@contextmanager
def relayed(port: int) -> Iterator[None]:
    """While a connection from this local port carries what a worker's browser asked for, and a moment longer."""
    now = time.monotonic()
    for old in [old for old, until in _relayed.items() if until < now]:
        del _relayed[old]
    _relayed[port] = float("inf")
    try:
        yield
    finally:
        _relayed[port] = time.monotonic() + LATE_S


def _is_relayed(port: int) -> bool:
    return _relayed.get(port, 0.0) > time.monotonic()


def has_commands() -> bool:
    """Whether any command runs, or just did, or a browser's page is served; quick enough to ask for each connection.

    Commands are known on Linux only.
    """
    if any(map(_is_relayed, _relayed)):
        return True
    if sys.platform != "linux":
        return False
    return bool(children_of(os.getpid())) or time.monotonic() < last_command_ended_at() + LATE_S


def is_from_command(peer_port: int, own_port: int) -> bool:
    """Whether the other end of a loopback connection belongs to a command, or to anything that it started.

    Blocking, some milliseconds; to be asked only when `has_commands`. A command is a child that carries the mark
    which `run_command` gives; everything below it counts, with or without the mark. A connection that its owner has
    closed already counts too: nobody is there to be asked, or to read an answer, and the command itself may be gone.
    """
    if _is_relayed(peer_port):
        return True
    if sys.platform != "linux":
        return False
    before: set[str] | None = None
    while True:
        # A table that changes while it is read may lack a line, so a missing one is looked for twice.
        inodes = _inodes(peer_port, own_port) or _inodes(peer_port, own_port)
        if not inodes:
            return not _is_from_elsewhere(peer_port, own_port)
        if _NOBODY in inodes or _is_held_by_command({f"socket:[{inode}]" for inode in inodes}):
            return True
        if inodes == before:
            return False
        before = inodes  # a command may have closed it while its files were looked at: is it anybody's still?


def _is_held_by_command(wanted: set[str]) -> bool:
    """Whether a command, or anything below one, has one of these open."""
    commands = [pid for pid in children_of(os.getpid()) if carries(str(pid), f"{MARK}=".encode())]
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


def _inodes(peer_port: int, own_port: int) -> set[str]:
    """The sockets that talk from `peer_port` to `own_port`, as the system's table knows them.

    Several when they differ in their addresses only; then it takes one of a command to refuse.
    """
    return {line[9] for line in _lines() if (_port(line[1]), _port(line[2])) == (peer_port, own_port)}


def _is_from_elsewhere(peer_port: int, own_port: int) -> bool:
    """Whether our own end of a connection says that the other one is on another machine."""
    for line in _lines():
        if (_port(line[1]), _port(line[2])) == (own_port, peer_port):
            own, peer = (address.rpartition(":")[0] for address in line[1:3])
            return peer != own and not _is_loopback(peer)
    return False  # it is gone by now


def _is_loopback(address: str) -> bool:
    """Whether an address is 127.x.x.x, that in IPv6's clothes, or ::1; words in the order of this machine."""
    if len(address) == 8:
        return bytes.fromhex(address)[:: -1 if sys.byteorder == "little" else 1][0] == 127
    if address[:24] in ("0" * 16 + "FFFF0000", "0" * 20 + "FFFF"):
        return _is_loopback(address[24:])
    return address in ("0" * 24 + "01000000", "0" * 31 + "1")


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _lines() -> Iterator[list[str]]:
    for table in _TCP_TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        yield from (line.split() for line in lines)


def _holds(pid: int, wanted: set[str]) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(os.readlink(entry.path) in wanted for entry in entries)
    except OSError:
        return False  # it just ended
