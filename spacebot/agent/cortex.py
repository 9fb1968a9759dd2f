"""The cortex: what looks after memory and processes while people talk.

It has duties, each with a rule of its own on when something is due. A duty sleeps until an event or its own clock
says so, runs alone, and pauses after failures; nothing here runs because time passes over an unchanged store, but
for one maintenance a day. The watch over branches and workers (`liveness.py`) is its other half.

Flow:    event -> Duty.noticed -> its loop wakes -> Duty.due_s -> Duty.run -> curation log and CORTEX_EVENT
Floor:   agent
Source:  process spec 10, memory spec 9.4 and 11.1; pitfalls P54, P70, P-24 to P-26, P-37; design laws 2, 3, 10
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from spacebot.agent.duties import (
    BulletinDuty,
    Desk,
    Duty,
    ObservationDuty,
    ProfileDuty,
)
from spacebot.agent.liveness import Liveness, Stalled, WatchedModel
from spacebot.agent.parts import AgentParts
from spacebot.agent.profile import Profile
from spacebot.agent.upkeep import AssociationDuty, ContradictionDuty, MaintenanceDuty
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import BudgetExceededError, SpacebotError
from spacebot.base.events import EventKind, ProcessEvent
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome, describe
from spacebot.config.model import CortexConfig
from spacebot.storage.database import Database

log = logging.getLogger(__name__)

LIMIT_S = 1800.0  # of one run of a duty that names no limit of its own
BACK_OFF_FIRST_S, BACK_OFF_MOST_S = 30.0, 300.0  # process spec 10.6
PAUSE_MOST_S = 86_400.0  # a duty that goes on failing is tried once a day
REST_S = 1.0  # between two runs, and between two batches of events
_STIRS = frozenset(
    {EventKind.MEMORY_SAVED, EventKind.MEMORY_CHANGED, EventKind.BRANCH_STARTED, EventKind.CONFIG_RELOADED}
)


class Breaker:
    """Counts failures in a row and says how long to wait: ever longer, and very long from a number on."""

    def __init__(self) -> None:
        self.failures = 0
        self._until = 0.0

    @property
    def wait_s(self) -> float:
        """Seconds until the next attempt is allowed."""
        return max(0.0, self._until - monotonic_s())

    def failed(self, threshold: int, pause_s: float) -> float:
        """Count a failure; returns the seconds until the next attempt."""
        self.failures += 1
        if self.failures < threshold:
            wait_s = min(BACK_OFF_MOST_S, BACK_OFF_FIRST_S * 2.0 ** (self.failures - 1))
        else:
            wait_s = min(max(pause_s, PAUSE_MOST_S), pause_s * 2.0 ** min(self.failures - threshold, 30))
        self._until = monotonic_s() + wait_s
        return wait_s

    def hold(self, wait_s: float) -> None:
        """Wait without having failed."""
        self._until = monotonic_s() + wait_s

    def succeeded(self) -> None:
        """Forget the failures."""
        self.failures, self._until = 0, 0.0


class _Loop:
    """One duty with what is known of its runs."""

    def __init__(self, duty: Duty) -> None:
        self.duty = duty
        self.breaker = Breaker()
        self.stirred = trio.Event()
        self.is_open = False
        self.is_running = False
        self.last_success_at: str | None = None

    def stir(self) -> None:
        """Let the loop ask again when the duty is due."""
        self.stirred.set()

    def wait_s(self) -> float | None:
        """Seconds until the next run; None while there is nothing to do."""
        due_s = self.duty.due_s() if self.is_open else 0.0
        return None if due_s is None else max(due_s, self.breaker.wait_s)

    def describe(self, config: CortexConfig) -> dict[str, Any]:
        """Its state, for people."""
        wait_s = None if self.is_running else self.wait_s()
        return {
            "is_running": self.is_running,
            "due_in_s": None if wait_s is None else round(max(0.0, wait_s)),
            "failures": self.breaker.failures,
            "is_paused": self.breaker.failures >= config.circuit_breaker_threshold and self.breaker.wait_s > 0,
            "last_success_at": self.last_success_at,
        }


class Cortex:
    """One agent's cortex; `run` is its life, inside the node that it makes below the agent's."""

    def __init__(self, parts: AgentParts, database: Database, watched: WatchedModel, parent: Node) -> None:
        """Take what the duties need.

        Args:
            watched: the model of the agent's processes, which knows who waits for it.
        """
        self._parts = parts
        self._node = parts.tree.add(
            NodeKind.CORTEX, "memory and supervision", parent=parent, node_id=f"cortex:{parts.id}"
        )
        self._desk = desk = Desk(parts, database, self._node)
        profile = ProfileDuty(desk)
        contradiction = ContradictionDuty(desk)
        duties: Sequence[Duty] = (
            BulletinDuty(desk, profile),
            profile,
            ObservationDuty(desk),
            AssociationDuty(desk, contradiction),
            contradiction,
            MaintenanceDuty(desk),
        )
        self._loops = [_Loop(duty) for duty in duties]
        for loop in self._loops:
            loop.duty.stir = loop.stir
        self._liveness = Liveness(
            parts.tree,
            parts.events,
            parts.id,
            settings=lambda: parts.settings().cortex,
            is_asking=watched.is_asked_by,
            stalled=self._stalled,
        )

    def state(self) -> Mapping[str, Any]:
        """What the cortex has done and will do, as JSON values."""
        last = self._parts.briefing.last
        return {
            "bulletin": {
                "generated_at": last.gathered_at.isoformat() if last else None,
                "words": last.words if last else 0,
                "is_shown": self._parts.briefing.is_shown,
            },
            "duties": {loop.duty.name: loop.describe(self._desk.config) for loop in self._loops},
        }

    def look(self) -> None:
        """Look again what is due: the agent is no longer paused."""
        for loop in self._loops:
            loop.stir()

    async def profile(self) -> Profile | None:
        """The agent's card, once there is one."""
        return await self._desk.profiles.get()

    async def run(self) -> None:
        """Live until cancelled."""

        async def live() -> Outcome:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                nursery.start_soon(self._watch)
                for loop in self._loops:
                    nursery.start_soon(self._keep, loop, name=f"cortex {loop.duty.name}")
            raise AssertionError("unreachable")

        async def settle(outcome: Outcome) -> None:
            return None

        await self._parts.tree.supervise(self._node, live, settle=settle)

    async def _listen(self) -> None:
        """Hand events to the duties, some at a time."""
        with self._parts.events.subscribe(_STIRS) as events:
            while (event := await events.receive()) is not None:
                batch = [event]
                while (event := events.receive_nowait()) is not None:
                    batch.append(event)
                self._notice(batch, events.take_skipped())
                await trio.sleep(REST_S)

    def _notice(self, batch: Sequence[ProcessEvent], skipped: int) -> None:
        own = [event for event in batch if event.agent_id in (None, self._parts.id)]
        for loop in self._loops:
            concerned = [event for event in own if loop.duty.noticed(event)]
            if concerned or skipped:
                loop.stir()

    async def _watch(self) -> None:
        """Watch over branches and workers, whatever goes wrong in one look."""
        while True:
            try:
                return await self._liveness.run()
            except Exception as error:  # boundary: process
                log.error("watch over processes failed", exc_info=error, extra=kv(agent=self._parts.id))
                await trio.sleep(self._desk.config.tick_interval_secs)

    async def _stalled(self, stalled: Stalled) -> None:
        await self._desk.note(
            "process_killed",
            f"{stalled.kind} ended after {stalled.silent_s:.0f} s without a sign of life",
            process_id=stalled.node_id,
            process_type=str(stalled.kind),
            channel_id=stalled.channel_id,
            silent_s=round(stalled.silent_s),
            limit_s=round(stalled.limit_s),
            was_in_model_call=stalled.was_in_model_call,
        )

    async def _keep(self, loop: _Loop) -> None:
        """Run a duty whenever it is due."""
        while True:
            loop.stirred = trio.Event()
            wait_s = await self._next(loop)
            if wait_s is None:
                await loop.stirred.wait()
            elif wait_s > 0:
                with trio.move_on_after(wait_s):
                    await loop.stirred.wait()
            else:
                await self._attempt(loop)
                await trio.sleep(REST_S)

    async def _next(self, loop: _Loop) -> float | None:
        if self._parts.pause.is_on:
            return None
        try:
            return loop.wait_s()
        except Exception as error:  # boundary: process
            await self._failed(loop, error)
            return loop.breaker.wait_s

    async def _attempt(self, loop: _Loop) -> None:
        """One run, or the duty's first look at where its last life left off."""
        loop.is_running = True
        self._node.state = NodeState.RUNNING
        self._node.progress(loop.duty.name)
        try:
            if loop.is_open:
                with trio.fail_after(loop.duty.limit_s or LIMIT_S):
                    await loop.duty.run()
                loop.last_success_at = self._parts.clock.text()
            else:
                await loop.duty.open()
                loop.is_open = True
        except BudgetExceededError as error:  # nothing is wrong: the owner wants it so
            loop.breaker.hold(error.retry_after_s)
        except Exception as error:  # boundary: process
            await self._failed(loop, error)
        else:
            loop.breaker.succeeded()
        finally:
            loop.is_running = False
            if not any(other.is_running for other in self._loops):
                self._node.state = NodeState.WAITING
                self._node.progress("")

    async def _failed(self, loop: _Loop, error: Exception) -> None:
        """Count and tell a failure; only what nobody foresaw is an error of the program."""
        config = self._desk.config
        wait_s = loop.breaker.failed(config.circuit_breaker_threshold, config.circuit_breaker_pause_secs)
        is_late = isinstance(error, trio.TooSlowError)
        reason = "it took too long and was cancelled" if is_late else scrub(describe(error))
        name = loop.duty.name
        fields = kv(agent=self._parts.id, duty=name, failures=loop.breaker.failures, wait_s=wait_s, reason=reason)
        if is_late or isinstance(error, SpacebotError):
            log.warning("cortex duty failed", extra=fields)
        else:
            log.error("cortex duty failed", exc_info=error, extra=fields)
        await self._desk.note(
            f"{name}_{'timeout' if is_late else 'failed'}",
            f"{name} failed, next attempt in {wait_s:.0f} s",
            error=reason,
            failures=loop.breaker.failures,
            pause_s=wait_s,
        )
