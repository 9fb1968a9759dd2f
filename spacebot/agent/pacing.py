"""When a channel takes a turn, and with what. Pure: functions of what arrived and the time given.

Three clocks: the coalescing window of a burst (process spec 4.3), the debounce of finished work
(4.12), and a pause after a failure. A direct chat never waits, nor does who calls the agent by name;
what comes while a turn runs is taken together by the next.

Floor: agent
"""

import math
from collections import deque
from dataclasses import dataclass

from spacebot.base.ids import MessageId
from spacebot.config.model import CoalesceConfig
from spacebot.conversations.records import Journalled, PendingResult

RESULT_DEBOUNCE_S = 0.5  # finished work that ends together is told together; process spec 4.12
RETRIGGERS_IN_A_ROW = 3  # breaks answer loops between a channel and its own workers; process spec 4.12
RETRY_S = 30.0  # pause before work that failed without the people's fault is tried again; doubles with each failure
LONGEST_PAUSE_S = 600.0
BATCH = 100  # messages in one turn; more than a model can answer sensibly anyway
HELD = 500  # waiting messages kept in memory; later ones wait in the journal


@dataclass(frozen=True, slots=True)
class Work:
    """What the next turn deals with. At least one of the two is not empty."""

    messages: tuple[Journalled, ...]
    results: tuple[PendingResult, ...]
    failures: int = 0  # turns in a row that could not tell these results

    @property
    def is_retrigger(self) -> bool:
        """Whether finished work alone, no person, caused the turn."""
        return not self.messages


class Pacing:
    """What waits in one channel and when it is due."""

    def __init__(self) -> None:
        self._messages: deque[Journalled] = deque()
        self._known: set[MessageId] = set()
        self._taken: deque[MessageId] = deque(maxlen=2 * HELD)
        self._results: dict[str, PendingResult] = {}
        self._taken_results: deque[str] = deque(maxlen=2 * HELD)
        self._first_at = 0.0
        self._window_ends = 0.0
        self._is_urgent = False  # somebody who waits is waiting for us, not for the room
        self._results_due = math.inf
        self._not_before = 0.0
        self._retriggers = 0  # turns without a person that started new work
        self._failures = 0
        self.has_overflowed = False  # some messages wait in the journal only

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits that will become due by itself."""
        return not self._messages and not self.has_overflowed and self._results_due == math.inf

    def add_message(self, message: Journalled, now: float, config: CoalesceConfig) -> None:
        """Note a message; a full queue leaves it to the journal, and with it all that follow.

        One that is known, also as dealt with, is passed over: the journal may hand out what came by itself.
        """
        if message.id in self._known or message.id in self._taken:
            return
        if self.has_overflowed or len(self._messages) >= HELD:
            self.has_overflowed = True
            return
        if not self._messages:
            self._first_at = now
        self._messages.append(message)
        self._known.add(message.id)
        if not config.enabled or (config.multi_user_only and message.message.is_direct) or message.message.is_addressed:
            self._is_urgent = True
        if self._is_urgent:
            self._window_ends = min(self._window_ends, now) if len(self._messages) > 1 else now
            return
        self._window_ends = now + config.debounce_ms / 1000
        if len(self._messages) >= config.min_messages:
            self._window_ends = min(self._window_ends, max(now, self._first_at + config.max_wait_ms / 1000))

    def change(self, message_id: MessageId, message: Journalled | None) -> None:
        """Let a waiting message say something else; None takes it out."""
        for index, known in enumerate(self._messages):
            if known.id == message_id:
                if message is None:
                    del self._messages[index]
                    self._known.discard(message_id)
                else:
                    self._messages[index] = message
                return

    def add_result(self, result: PendingResult, now: float, *, at_once: bool = False) -> None:
        """Note finished work; each arrival starts the debounce anew.

        After `RETRIGGERS_IN_A_ROW` turns that finished work caused and that started new work, it waits for the
        next message of a person.
        """
        if result.id in self._taken_results:
            return
        self._results[result.id] = result
        if self._retriggers < RETRIGGERS_IN_A_ROW:
            self._results_due = now if at_once else now + RESULT_DEBOUNCE_S

    def due_at(self) -> float:
        """When the next turn may begin; infinity when nothing waits."""
        message_due = self._window_ends if self._messages else math.inf
        return max(min(message_due, self._results_due), self._not_before)

    def take(self, now: float) -> Work | None:
        """What is due now: waiting messages with all finished work, or finished work alone; None when nothing is."""
        if self.due_at() > now:
            return None
        messages: list[Journalled] = []
        if self._messages and (self._window_ends <= now or self._results_due <= now):
            waiting = sorted(self._messages, key=lambda message: message.seq)  # tasks hand in in any order
            messages, self._messages = waiting[:BATCH], deque(waiting[BATCH:])
            self._is_urgent = False
            self._known.difference_update(message.id for message in messages)
            self._taken.extend(message.id for message in messages)
        if messages:
            self._retriggers = 0
        results = tuple(self._results.values())
        self._taken_results.extend(self._results)
        self._results.clear()
        self._results_due = math.inf
        return Work(tuple(messages), results, self._failures)

    def note_end(self, work: Work, *, has_spawned: bool, untold: tuple[PendingResult, ...], now: float) -> None:
        """Note how a turn ended. Results that it could not tell cause another after a pause, ever longer."""
        if work.is_retrigger and has_spawned:
            self._retriggers += 1
            if self._retriggers >= RETRIGGERS_IN_A_ROW:  # also for what came back while the turn was still running
                self._results_due = math.inf
        self._failures = self._failures + 1 if untold else 0
        self._give_back_results(untold, now)

    def give_back(self, work: Work, now: float) -> None:
        """Take work back that could not be dealt with; it is tried again after a pause."""
        self._messages.extendleft(reversed(work.messages))  # they are noted as dealt with, so nothing adds them again
        self._known.update(message.id for message in work.messages)
        self._window_ends = min(self._window_ends, now)
        self._not_before = now + RETRY_S
        self._give_back_results(work.results, now)

    def _give_back_results(self, results: tuple[PendingResult, ...], now: float) -> None:
        for result in results:
            self._results.setdefault(result.id, result)
        if results and self._retriggers < RETRIGGERS_IN_A_ROW:
            self._results_due = now + min(LONGEST_PAUSE_S, RETRY_S * 2 ** max(0, self._failures - 1))
