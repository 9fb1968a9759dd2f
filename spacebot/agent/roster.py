"""The agents of the program as live services: opened, closed, opened again as the configuration says.

Each agent lives in a task of its own, so that one which cannot be opened, or breaks, harms nobody else: it is shown
as failed with its reason and tried again with growing pauses. One that leaves the file may finish what it is saying,
then everything below it ends and its stores close; its files stay. Another workspace means closing and opening.

    starting -> running | paused -> stopping -> gone, or starting with another workspace
             -> failed -> starting, after a pause

Flow:   ConfigStore.reload -> Roster.reconcile -> _keep per agent -> open_agent
Floor:  agent
Source: process spec 2.3 to 2.5, control spec 1.11 and 4.3; pitfalls P50, 8.1.8 and 8.1.16
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

import trio

from spacebot.agent.agent import Agent
from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.errors import BusyError, NotFoundError, SpacebotError, StorageError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import AgentId
from spacebot.base.supervise import BackOff, is_permanent
from spacebot.base.telemetry import kv
from spacebot.base.tree import describe
from spacebot.config.model import AgentConfig

log = logging.getLogger(__name__)

BACK_OFF = BackOff(first_s=1.0, longest_s=60.0, permanent_s=60.0, steady_s=60.0)
TURNS_S = 5.0  # running turns get this long to finish when their agent, or the program, stops
DELIVERY_S = 2.0  # and what they said this long to reach its platform
WAIT_S = 10.0  # for an agent that is just being opened, so that nothing said to it is turned away

Settings = Callable[[], AgentConfig]
OpenAgent = Callable[[Settings], AbstractAsyncContextManager[Agent]]


class AgentState(StrEnum):
    """How an agent is."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"  # it listens and keeps what is said; nothing is begun
    STOPPING = "stopping"
    FAILED = "failed"  # it is tried again


_MOVING = frozenset({AgentState.STARTING, AgentState.STOPPING})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """An agent from outside. `reason` says why it failed; it holds no secret."""

    id: AgentId
    state: AgentState
    since: datetime
    reason: str = ""
    attempts: int = 0  # failed ones in a row
    next_attempt_at: datetime | None = None


@dataclass(eq=False)
class _Slot:
    """One agent and what became of it."""

    config: AgentConfig  # the last one that the file had
    since: datetime
    state: AgentState = AgentState.STARTING
    reason: str = ""
    attempts: int = 0
    next_attempt_at: datetime | None = None
    workspace: Path | None = None  # that it was opened with
    agent: Agent | None = None
    error: Exception | None = None
    change: trio.Event = field(default_factory=trio.Event)  # look at the configuration again
    opening: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def id(self) -> AgentId:
        return AgentId(self.config.id)


class Roster:
    """All agents; see `open_roster`."""

    def __init__(
        self,
        configured: Callable[[], Sequence[AgentConfig]],
        open_one: OpenAgent,
        nursery: trio.Nursery,
        *,
        events: EventBus,
        clock: Clock,
        back_off: BackOff = BACK_OFF,
    ) -> None:
        self._configured = configured
        self._open_one = open_one
        self._nursery = nursery
        self._events = events
        self._clock = clock
        self._back_off = back_off
        self._slots: dict[AgentId, _Slot] = {}
        self._live: dict[AgentId, Agent] = {}
        self._moved = trio.Event()
        self._is_ending = False
        self._has_started = False

    @property
    def live(self) -> Mapping[AgentId, Agent]:
        """The agents that can be spoken to now, in the order of the file; a snapshot that never changes."""
        return self._live

    def find(self, agent_id: str) -> Agent | None:
        """An open agent, also while it finishes."""
        slot = self._slots.get(AgentId(agent_id))
        return None if slot is None else slot.agent

    def views(self) -> list[AgentView]:
        """How each agent is, in the order of the file; those that are just leaving come last."""
        order = {agent.id: number for number, agent in enumerate(self._configured())}
        return [
            AgentView(
                id=slot.id,
                state=slot.state,
                since=slot.since,
                reason=slot.reason,
                attempts=slot.attempts if slot.error is not None else 0,
                next_attempt_at=slot.next_attempt_at,
            )
            for slot in sorted(self._slots.values(), key=lambda slot: order.get(slot.id, len(order)))
        ]

    def why_absent(self, agent_id: str) -> SpacebotError:
        """What to tell somebody who asks for an agent that is not live."""
        slot = self._slots.get(AgentId(agent_id))
        if slot is None:
            known = ", ".join(self._slots) or "none"
            return NotFoundError(f"there is no agent {agent_id[:80]!r}; there are: {known}")
        if slot.state is AgentState.FAILED:
            return BusyError(f"agent {agent_id!r} cannot run: {slot.reason}; it is tried again by itself")
        return BusyError(f"agent {agent_id!r} is {slot.state}; try again in a moment")

    def reconcile(self) -> None:
        """Open, close and re-open agents as the configuration wants it now. Never waits."""
        if self._is_ending:
            return
        wanted = {agent.id: agent for agent in self._configured()}
        for agent_id, config in wanted.items():
            slot = self._slots.get(AgentId(agent_id))
            if slot is None:
                slot = _Slot(config, since=self._clock.now(), workspace=config.workspace)
                self._slots[slot.id] = slot
                self._nursery.start_soon(self._keep, slot, name=f"agent {agent_id}")
            elif slot.state is AgentState.FAILED or slot.workspace != config.workspace:
                slot.change.set()
        for slot in self._slots.values():
            if slot.id not in wanted:
                slot.change.set()
            if slot.change.is_set() and slot.state is AgentState.STARTING:
                slot.opening.cancel()
        for agent in self._live.values():
            agent.take_over()
        self._note_move()

    async def settled(self, agent_id: str | None = None) -> None:
        """Wait until an agent, or all, are as the configuration wants it, or have failed at it."""
        while not self._is_settled(agent_id):
            await self._moved.wait()

    async def wait_live(self, agent_id: AgentId, patience_s: float = WAIT_S) -> Agent:
        """A live agent; one that is being opened is waited for. Errors: NotFoundError; BusyError when it cannot run."""
        with trio.move_on_after(patience_s):
            while (agent := self._live.get(agent_id)) is None and self._is_coming(agent_id):
                await self._moved.wait()
        agent = self._live.get(agent_id)
        if agent is None:
            raise self.why_absent(agent_id)
        return agent

    async def pause(self, agent_id: str, *, is_on: bool) -> None:
        """Pause an agent, or let it go on; that outlives a restart. Errors: NotFoundError, BusyError, StorageError."""
        agent = self._live.get(AgentId(agent_id))
        if agent is None:
            raise self.why_absent(agent_id)
        await (agent.pause() if is_on else agent.resume())
        slot = self._slots.get(agent.id)
        if slot is not None and slot.state in (AgentState.RUNNING, AgentState.PAUSED):
            self._turn(slot, AgentState.PAUSED if agent.is_paused else AgentState.RUNNING)

    async def drain(self) -> None:
        """The program stops: no new turn begins, running ones may finish, and what they say still goes out."""
        self._is_ending = True
        async with trio.open_nursery() as draining:
            for agent in self._live.values():
                draining.start_soon(_finish, agent)

    async def close(self) -> None:
        """End all agents as they stand."""
        self._is_ending = True
        for slot in self._slots.values():
            slot.change.set()
            if slot.state is AgentState.STARTING:
                slot.opening.cancel()
        while self._slots:
            await self._moved.wait()

    def note_start(self) -> None:
        """The program goes on with what could be opened; what could not is told. Errors: why not one agent could."""
        errors = [slot.error for slot in self._slots.values()]
        if errors and errors[0] is not None and None not in errors:
            raise errors[0]  # who starts the program must hear why
        self._has_started = True
        for view in self.views():
            if view.state is AgentState.FAILED:
                log.warning("agent does not run", extra=kv(agent=view.id, reason=view.reason))

    def _wanted(self, slot: _Slot) -> AgentConfig | None:
        """The agent's table as it is now; None when it left the file."""
        found = next((agent for agent in self._configured() if agent.id == slot.config.id), None)
        if found is not None:
            slot.config = found
        return found

    async def _keep(self, slot: _Slot) -> None:
        """Keep an agent open for as long as the file has it, whatever goes wrong."""
        try:
            while not self._is_ending and (config := self._wanted(slot)) is not None:
                slot.change, slot.opening, slot.workspace = trio.Event(), trio.CancelScope(), config.workspace
                self._turn(slot, AgentState.STARTING)
                began = monotonic_s()
                try:
                    await self._live_once(slot)
                except Exception as error:  # boundary: process
                    pause_s = self._note_failure(slot, error, lived_s=monotonic_s() - began)
                    with trio.move_on_after(pause_s):
                        await slot.change.wait()
        finally:
            if self._slots.get(slot.id) is slot:
                del self._slots[slot.id]
            self._note_move()

    async def _live_once(self, slot: _Slot) -> None:
        """One life of an agent."""
        with slot.opening:  # cancelled while it is opened only; later it may finish
            async with self._open_one(lambda: self._wanted(slot) or slot.config) as agent:
                slot.error, slot.reason, slot.next_attempt_at = None, "", None
                slot.agent = agent
                self._enlist(agent)
                self._turn(slot, AgentState.PAUSED if agent.is_paused else AgentState.RUNNING)
                try:
                    await slot.change.wait()
                    if not self._is_ending:
                        self._delist(slot)  # nobody new comes in while it finishes
                        self._turn(slot, AgentState.STOPPING)
                        log.info("agent is closing", extra=kv(agent=slot.id))
                        await _finish(agent)
                        await _tell_what_waits(agent)
                finally:
                    self._delist(slot)
                    slot.agent = None
                    self._turn(slot, AgentState.STOPPING)

    def _enlist(self, agent: Agent) -> None:
        live = {**self._live, agent.id: agent}  # a new mapping each time: readers may be in the middle of the old one
        order = [AgentId(config.id) for config in self._configured()]  # first come is not first in the file
        self._live = {agent_id: live[agent_id] for agent_id in sorted(live, key=lambda one: _place(order, one))}

    def _delist(self, slot: _Slot) -> None:
        self._live = {agent_id: agent for agent_id, agent in self._live.items() if agent_id != slot.id}

    def _note_failure(self, slot: _Slot, error: Exception, *, lived_s: float) -> float:
        """Take note that an agent could not be opened or broke; returns the seconds until the next attempt."""
        slot.attempts = 1 if lived_s >= self._back_off.steady_s else slot.attempts + 1
        known = _first(error)
        pause_s = self._back_off.permanent_s if is_permanent(error) else self._back_off.pause_s(slot.attempts)
        slot.error, slot.reason = known, describe(known)
        slot.next_attempt_at = self._clock.now() + timedelta(seconds=pause_s)
        fields = kv(agent=slot.id, failures=slot.attempts, pause_s=pause_s, reason=slot.reason)
        if isinstance(known, SpacebotError):
            level = logging.WARNING if self._has_started else logging.DEBUG
            log.log(level, "agent does not run", extra=fields)
        else:
            log.error("agent failed", exc_info=error if slot.attempts == 1 else None, extra=fields)
        self._turn(slot, AgentState.FAILED)
        return pause_s

    def _is_settled(self, agent_id: str | None) -> bool:
        wanted = {agent.id: agent for agent in self._configured()}
        for name in {*wanted, *self._slots} if agent_id is None else {agent_id}:
            config, slot = wanted.get(name), self._slots.get(AgentId(name))
            if config is None:
                if slot is not None:
                    return False
            elif slot is None or slot.change.is_set() or slot.workspace != config.workspace or slot.state in _MOVING:
                return False
        return True

    def _is_coming(self, agent_id: AgentId) -> bool:
        slot = self._slots.get(agent_id)
        if slot is None or self._is_ending:
            return False
        is_wanted = any(agent.id == agent_id for agent in self._configured())
        return is_wanted and (slot.state is not AgentState.FAILED or slot.change.is_set())

    def _turn(self, slot: _Slot, state: AgentState) -> None:
        if slot.state is not state or state is AgentState.FAILED:
            slot.state, slot.since = state, self._clock.now()
            self._events.emit(EventKind.AGENT_STATE, agent_id=slot.id, state=str(state), reason=slot.reason)
        self._note_move()

    def _note_move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()


@asynccontextmanager
async def open_roster(
    configured: Callable[[], Sequence[AgentConfig]],
    open_one: OpenAgent,
    *,
    events: EventBus,
    clock: Clock,
    back_off: BackOff = BACK_OFF,
) -> AsyncIterator[Roster]:
    """Keep the configured agents open while the block runs; entering does not wait for them (`Roster.settled`).

    Args:
        configured: the agents of the live configuration, asked at each look.
        open_one: opens one agent by its settings; leaving that closes it.

    Owns: a task per agent. On leaving, agents close as they stand (call `Roster.drain` first).
    Cancel: cuts all agents; what they leave is taken up by the next start.
    """
    async with trio.open_nursery() as nursery:
        roster = Roster(configured, open_one, nursery, events=events, clock=clock, back_off=back_off)
        roster.reconcile()
        yield roster
        await roster.close()


def _place(order: Sequence[AgentId], agent_id: AgentId) -> int:
    return order.index(agent_id) if agent_id in order else len(order)


async def _finish(agent: Agent) -> None:
    """Let running turns end and what they said go out; the rest waits on disk."""
    await agent.drain(TURNS_S)
    await agent.delivery.flush(DELIVERY_S)


async def _tell_what_waits(agent: Agent) -> None:
    """Say what its platforms have not taken; it stays in the agent's files and goes out if the agent comes back."""
    try:
        waiting = sum((await agent.delivery.outbox.counts()).values())
    except StorageError:
        return  # its end is not held up by a store that fails anyway
    if waiting:
        log.warning("messages of an agent that is closed wait undelivered", extra=kv(agent=agent.id, count=waiting))


def _first(error: Exception) -> Exception:
    """The error inside its groups that says most: our own kind before others."""
    found: list[Exception] = []
    left: list[Exception] = [error]
    while left:
        one = left.pop()
        if isinstance(one, ExceptionGroup):
            left.extend(reversed(one.exceptions))
        else:
            found.append(one)
    return next((one for one in found if isinstance(one, SpacebotError)), found[0])
