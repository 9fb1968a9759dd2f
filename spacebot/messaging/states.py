"""What the owner sees of an adapter: how its connection is and what went through it.

Floor:  messaging
Source: messaging spec 3 and 16
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Connection(StrEnum):
    """How an adapter is."""

    STARTING = "starting"  # signing in
    CONNECTED = "connected"
    RETRYING = "retrying"  # it failed, and waits for its next attempt
    STOPPED = "stopped"  # taken out of service
    DISABLED = "disabled"  # configured, and switched off


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterState:
    """One adapter at one moment.

    Args:
        key: runtime name: the platform, or `platform:instance`.
        detail: the last problem in words, without secrets; empty when all is well.
        who: who it is signed in as.
        since: when it came into this state, in UTC.
        attempts: failed attempts in a row.
        next_attempt_at: when a retrying one tries again, in UTC.
        received: messages taken since the program started.
        sent: messages delivered since then.
        failed: messages given up since then.
        queued: messages that wait to be delivered.
    """

    key: str
    platform: str
    state: Connection
    detail: str = ""
    who: str = ""
    since: datetime | None = None
    attempts: int = 0
    next_attempt_at: datetime | None = None
    received: int = 0
    sent: int = 0
    failed: int = 0
    queued: int = 0
