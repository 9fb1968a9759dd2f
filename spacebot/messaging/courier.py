"""What the rest of the program asks of the platforms: which adapters there are, and whether one is connected.

Floor: messaging
"""

from collections.abc import Collection
from typing import Protocol

import trio

from spacebot.messaging.adapter import Adapter, Traits


class Courier(Protocol):
    """The adapters by their runtime keys."""

    def keys(self) -> Collection[str]:
        """All that the configuration names and does not disable."""
        ...

    def traits(self, key: str) -> Traits | None:
        """What an adapter can do; None when it is not configured or never came up yet."""
        ...

    def connected(self, key: str) -> Adapter | None:
        """An adapter, when it is connected now."""
        ...

    async def wait_connected(self, key: str) -> Adapter:
        """An adapter, as soon as it is connected; that may be never."""
        ...

    def note_delivery(self, key: str, *, is_delivered: bool) -> None:
        """Count a message that went out, or that nobody will get."""
        ...

    def streams(self, key: str) -> bool:
        """Whether the owner wants answers to be shown there while they grow."""
        ...


class _NoPlatforms:
    """Nothing is connected, and nothing ever will be."""

    def keys(self) -> Collection[str]:
        return ()

    def traits(self, key: str) -> Traits | None:
        return None

    def connected(self, key: str) -> Adapter | None:
        return None

    async def wait_connected(self, key: str) -> Adapter:
        await trio.sleep_forever()
        raise AssertionError

    def note_delivery(self, key: str, *, is_delivered: bool) -> None:
        return None

    def streams(self, key: str) -> bool:
        return False


NO_PLATFORMS: Courier = _NoPlatforms()
