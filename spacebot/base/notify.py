"""Words to the service manager (systemd): ready, reloading, stopping, alive.

Nothing happens where no manager listens; a manager that cannot be reached is no reason to fail.

Floor:   base
Source:  sd_notify(3), sd_watchdog_enabled(3)
"""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notifier:
    """The way to the manager; `address` None means that there is none."""

    address: str | None = None
    watchdog_s: float | None = None  # the manager restarts the program after this much silence

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Notifier":
        """Find the manager that started this process."""
        is_for_us = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        microseconds = environ.get("WATCHDOG_USEC", "")
        watchdog_s = int(microseconds) / 1e6 if is_for_us and microseconds.isdecimal() else None
        return cls(environ.get("NOTIFY_SOCKET") or None, watchdog_s or None)

    def ready(self, status: str = "") -> bool:
        """The program accepts messages, for the first time or again after a reload."""
        return self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def reloading(self) -> bool:
        """The configuration is being read again; `ready` follows."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """The program is on its way out."""
        return self._send("STOPPING=1")

    def alive(self) -> bool:
        """A sign of life, due at least twice in `watchdog_s`."""
        return self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> bool:
        if self.address is None:
            return False
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)  # a stuck manager must not stop our loop
                sender.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False
        return True
