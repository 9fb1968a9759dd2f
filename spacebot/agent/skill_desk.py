"""What the owner does with an agent's skills while the program runs: look, install, remove, ask the registry.

Flow:    SkillDesk.install -> fetch_and_install (a thread) -> shelf reloaded -> event
Floor:   agent
Source:  tools spec 10.3; control spec 4.6
"""

from typing import Any

import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import RefusedError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.fetch import Fetcher
from spacebot.tools.skill_install import Installer, described
from spacebot.tools.skill_sources import (
    Addresses,
    Listing,
    Repository,
    browse_registry,
    fetch_and_install,
    parse_source,
    search_registry,
)
from spacebot.tools.skills import SkillShelf


class SharedSkillError(RefusedError):
    """The skill belongs to all agents."""


class SkillDesk:
    """One agent's.

    Args:
        shelf: what its workers know; looked at again after each change.
    """

    def __init__(self, shelf: SkillShelf, fetcher: Fetcher, events: EventBus, clock: Clock) -> None:
        self._shelf = shelf
        self._fetcher = fetcher
        self._events = events
        self._clock = clock

    async def describe(self) -> list[dict[str, Any]]:
        """Every skill with its places, where it came from, and whether it was changed since (`state`).

        Errors: RefusedError when a lock file cannot be read.
        """
        skills = list(self._shelf.skills)

        def look() -> list[dict[str, Any]]:
            records = {source: self._installer(source).records() for source in ("instance", "workspace")}
            return [
                described(skill, self._shelf.folders[skill.source == "workspace"], records[skill.source])
                for skill in skills
            ]

        return await trio.to_thread.run_sync(look)

    async def install(self, spec: str, *, for_all: bool, replace: bool) -> list[str]:
        """Install from a repository; returns the names. Paths of this machine are for its command line only.

        Args:
            for_all: for all agents, not for this one alone.
            replace: overwrite what came from elsewhere or was changed.

        Errors: RefusedError, NotFoundError, BusyError, SkillError; ExternalError when it cannot be fetched.
        """
        source = parse_source(spec)
        if not isinstance(source, Repository):
            raise RefusedError("folders and files are installed with `spacebot skill add`; name owner/repo here")
        installer = self._installer("instance" if for_all else "workspace")
        names = await fetch_and_install(source, installer, self._fetcher, addresses=Addresses.of(), replace=replace)
        await self._changed()
        return names

    async def remove(self, name: str, *, for_all: bool) -> str:
        """Delete a skill; returns where it was.

        Args:
            for_all: it may be one of all agents.

        Errors: ToolError when there is none; SharedSkillError; RefusedError when it cannot be deleted; BusyError.
        """
        skill = self._shelf.find(name)
        if skill.source == "instance" and not for_all:
            raise SharedSkillError(f"{skill.name!r} belongs to all agents; say instance = true to remove it")
        await trio.to_thread.run_sync(self._installer(skill.source).remove, skill.folder)
        await self._changed()
        return str(skill.folder)

    async def search(self, query: str, limit: int) -> Listing:
        """Ask the registry. Errors: RefusedError, ExternalError."""
        return await search_registry(query, self._fetcher, addresses=Addresses.of(), limit=limit)

    async def browse(self, view: str, page: int) -> Listing:
        """A page of the registry. Errors: ExternalError."""
        return await browse_registry(view, page, self._fetcher, addresses=Addresses.of())

    def _installer(self, source: str) -> Installer:
        return Installer(self._shelf.folders[source == "workspace"], self._clock)

    async def _changed(self) -> None:
        if await self._shelf.reload():
            self._events.emit(EventKind.CONFIG_RELOADED, what="skills")
