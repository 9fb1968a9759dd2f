"""What model calls cost: priced and counted at once, written down some at a time, so that no call waits for the disk.

Flow:   UsageDesk.note -> PriceBook, Budget, Ledger -> queue -> UsageLog; report -> UsageLog
Floor:  agent
Source: control spec 2.15, 6.5
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import trio

from spacebot.agent.budget import Budget
from spacebot.base.clock import Clock, to_text
from spacebot.base.errors import StorageError
from spacebot.base.telemetry import kv
from spacebot.conversations.usage_log import UsageEntry, UsageLog, UsageReport
from spacebot.llm.manager import UsageRecord
from spacebot.llm.messages import Usage
from spacebot.llm.prices import PriceBook
from spacebot.storage.settings import Settings

log = logging.getLogger(__name__)

QUEUE = 1024  # completions whose cost waits to be written; further ones are dropped, with a warning
BATCH = 256
RETRY_S = 5.0  # after the disk refused some
LAST_S = 2.0  # for what is still to be written when the program stops
TOLD_KEY = "budget.told"


class LedgerKey(NamedTuple):
    """What the running totals are kept by; `tier` is None where no words chose the model."""

    model: str
    process: str
    tier: str | None


@dataclass(slots=True)
class LedgerLine:
    """Running totals since the program started."""

    requests: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float = 0.0
    saved_usd: float = 0.0


class Ledger:
    """Running totals of one agent in memory, for metrics."""

    def __init__(self) -> None:
        self._lines: dict[LedgerKey, LedgerLine] = {}

    @property
    def lines(self) -> Mapping[LedgerKey, LedgerLine]:
        """All of them."""
        return self._lines

    def add(self, entry: UsageEntry) -> None:
        """Count a completion."""
        line = self._lines.setdefault(LedgerKey(entry.model, entry.process_kind, entry.tier), LedgerLine())
        line.requests += 1
        line.usage += entry.usage
        line.cost_usd += entry.cost.usd or 0.0
        line.saved_usd += entry.saved_usd or 0.0


class UsageDesk:
    """One agent's model costs; `run` writes them down."""

    def __init__(
        self, usage_log: UsageLog, settings: Settings, agent_id: str, *, prices: PriceBook, budget: Budget, clock: Clock
    ) -> None:
        self.log = usage_log
        self._settings = settings
        self._agent_id = agent_id
        self._prices = prices
        self._clock = clock
        self._send, self._entries = trio.open_memory_channel[UsageEntry](QUEUE)
        self._batch: list[UsageEntry] = []
        self._has_failed = False
        self._told = ""
        self._settled_on = ""
        self.budget = budget
        self.ledger = Ledger()

    async def open(self) -> None:
        """Go on with the day's budget where the last life left off. Errors: StorageError."""
        self._told = await self._settings.get(TOLD_KEY)
        self.budget.resume(await self.log.spent(self.budget.nearby_days), self._told)
        self._told = self.budget.told

    def note(self, record: UsageRecord) -> None:
        """Take a completion's cost; never waits."""
        now = self._clock.now()
        entry = UsageEntry(
            at=to_text(now),
            day=self.budget.day_of(now),
            process_kind=str(record.process),
            process_id=record.node_id,
            channel_id=record.channel_id,
            model=record.model,
            usage=record.usage,
            cost=self._prices.cost(record.model, record.usage, is_included=record.is_included),
            tier=record.tier,
            default_model=record.default_model,
            saved_usd=None
            if record.is_included
            else self._prices.saved(record.model, record.default_model, record.usage),
        )
        self.ledger.add(entry)
        self.budget.add(entry.day, entry.model, entry.cost.usd, entry.tokens)
        try:
            self._send.send_nowait(entry)
        except trio.WouldBlock:
            log.warning("cost of a model call not recorded, too many wait", extra=kv(agent=self._agent_id))

    async def report(self, days: int) -> UsageReport:
        """What the last days have cost, today included. Errors: StorageError."""
        return await self.log.report(self.first_day(days))

    def first_day(self, days: int) -> str:
        """The first of the last so many days of the owner."""
        return self.budget.day_of(self._clock.now() - timedelta(days=days - 1))

    async def run(self) -> None:
        """Write until cancelled, and then what is left."""
        try:
            while True:
                self._batch = [await self._entries.receive(), *self._waiting(BATCH - 1)]
                while self._batch:
                    if not await self._write():
                        await trio.sleep(RETRY_S)
                await self._tidy()
        finally:
            self._batch += self._waiting(QUEUE)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_S):
                await self._write()

    def _waiting(self, most: int) -> list[UsageEntry]:
        entries: list[UsageEntry] = []
        while len(entries) < most:
            try:
                entries.append(self._entries.receive_nowait())
            except trio.WouldBlock:
                break
        return entries

    async def _write(self) -> bool:
        """Write the batch down; whether that worked. What is written is not in the batch any more."""
        told = self.budget.told
        try:
            if self._batch:
                await self.log.record(self._batch)
                self._batch = []
            if told != self._told:
                await self._settings.set(**{TOLD_KEY: told})
                self._told = told
        except StorageError as error:
            if not self._has_failed:
                log.error("cost of model calls not written", extra=kv(agent=self._agent_id, error=str(error)))
            self._has_failed = True
            return False
        self._has_failed = False
        return True

    async def _tidy(self) -> None:
        """Shorten what is old, once a day on which a model was asked."""
        today = self.first_day(1)
        if today == self._settled_on:
            return
        self._settled_on = today
        try:
            await self.log.settle()
        except StorageError as error:
            log.warning("old costs of model calls not shortened", extra=kv(agent=self._agent_id, error=str(error)))
