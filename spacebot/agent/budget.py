"""What an agent may spend on models between midnight and midnight of its owner's zone.

At a share of the limit (`warn_at`) the owner is warned once and the cortex' duties wait; at the limit no model call of
the agent is sent any more, until the day is over or the owner allows more. Calls that are on their way come home, so a
burst exceeds the limit by what was in flight, and by nothing else. Where no limit is set, this costs two comparisons.

Flow:   BudgetedModel.complete -> Budget.check -> the model; UsageDesk.note -> Budget.add -> warning
Floor:  agent
Source: control spec 2.15; ours
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Any

from spacebot.agent.parts import AgentModel
from spacebot.base.clock import Clock, format_local, parse_zone
from spacebot.base.errors import BudgetExceededError, ConfigError
from spacebot.base.events import EventBus, EventKind, EventValue, ProcessEvent
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node
from spacebot.config.model import AgentConfig
from spacebot.config.routing import BudgetConfig
from spacebot.conversations.usage_log import Spent
from spacebot.llm.messages import ModelReply, ModelRequest, OnDelta, ProcessKind

log = logging.getLogger(__name__)

LOOK_S = 900.0  # what waits for the next day looks again after this: the limit may have been raised
DAYS_KEPT = 3  # sums in memory: a clock that is set back finds its day again


class BudgetState(StrEnum):
    """How an agent stands with its day's budget."""

    NONE = "none"  # no limit is set
    OK = "ok"
    WARNED = "warned"  # duties of the cortex wait
    STOPPED = "stopped"  # no model is asked


_WORDS = {
    BudgetState.WARNED: "today's budget is nearly used up; upkeep waits until tomorrow",
    BudgetState.STOPPED: "today's budget is used up; no model is asked until tomorrow",
}
_ORDER = (BudgetState.NONE, BudgetState.OK, BudgetState.WARNED, BudgetState.STOPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """A day's budget as people see it; `resumes_at` is the next midnight, in UTC."""

    day: str
    config: BudgetConfig
    spent: Spent
    state: BudgetState
    resumes_at: datetime

    def to_json_object(self) -> dict[str, Any]:
        """For programs."""
        return {
            "day": self.day,
            "daily_usd": self.config.daily_usd,
            "daily_tokens": self.config.daily_tokens,
            "warn_at": self.config.warn_at,
            "spent_usd": round(self.spent.usd, 6),
            "spent_tokens": self.spent.tokens,
            "state": str(self.state),
            "resumes_at": self.resumes_at.isoformat(),
        }


class Budget:
    """The budget of one agent; its configuration is read at each look."""

    def __init__(self, agent_id: str, *, settings: Callable[[], AgentConfig], clock: Clock, events: EventBus) -> None:
        self._agent_id = agent_id
        self._settings = settings
        self._clock = clock
        self._events = events
        self._spent: dict[str, Spent] = {}
        self._told: tuple[str, BudgetState] = ("", BudgetState.NONE)  # the worst of a day that its owner was told
        self._unpriced: set[str] = set()

    def resume(self, spent: Mapping[str, Spent], told: str) -> None:
        """Go on where the last life left off.

        Args:
            told: what `told` was then.
        """
        self._spent = dict(spent)
        day, _, state = told.partition(" ")
        if state in (BudgetState.WARNED, BudgetState.STOPPED):
            self._told = (day, BudgetState(state))

    @property
    def told(self) -> str:
        """What has to outlive a restart, lest the same warning comes twice a day."""
        return f"{self._told[0]} {self._told[1]}"

    @property
    def nearby_days(self) -> tuple[str, ...]:
        """Today, and the days around it, for a clock or a zone that is changed."""
        now = self._clock.now().astimezone(self._zone())
        return tuple(_name(now + timedelta(days=days)) for days in (-1, 0, 1))

    def day_of(self, moment: datetime) -> str:
        """The owner's day of a moment."""
        return _name(moment.astimezone(self._zone()))

    def view(self) -> BudgetView:
        """How things stand now."""
        config, now = self._settings().budget, self._clock.now()
        day = self.day_of(now)
        spent = self._spent.get(day, Spent())
        return BudgetView(
            day=day, config=config, spent=spent, state=_state(config, spent), resumes_at=_midnight(now, self._zone())
        )

    def check(self, process: ProcessKind, node: Node | None = None) -> None:
        """Let a model call pass. Errors: BudgetExceededError."""
        config = self._settings().budget
        if config.daily_usd is None and config.daily_tokens is None:
            return
        view = self.view()
        self._tell(view)
        is_duty = process is ProcessKind.CORTEX and node is not None and node.id == f"cortex:{self._agent_id}"
        if view.state is BudgetState.STOPPED:
            raise self._refusal(view, "today's budget for model calls is used up; I go on")
        if view.state is BudgetState.WARNED and is_duty:
            raise self._refusal(view, "today's budget for model calls is nearly used up; upkeep goes on")

    def obstacle(self) -> str | None:
        """Why no model would be asked now, for people; None while nothing is in the way."""
        try:
            self.check(ProcessKind.CHANNEL)
        except BudgetExceededError as error:
            return str(error)
        return None

    def add(self, day: str, model: str, usd: float | None, tokens: int) -> None:
        """Count a completion.

        Args:
            usd: None where nobody knows the price.
        """
        before = self._spent.get(day, Spent())
        self._spent[day] = Spent(before.usd + (usd or 0.0), before.tokens + tokens)
        while len(self._spent) > DAYS_KEPT:
            del self._spent[min(kept for kept in self._spent if kept != day)]  # a clock may have been far ahead
        config = self._settings().budget
        if config.daily_usd is None and config.daily_tokens is None:
            return
        if usd is None and config.daily_usd is not None and model not in self._unpriced:
            self._unpriced.add(model)
            log.warning(
                "calls of a model without a known price do not count against daily_usd; set daily_tokens as well",
                extra=kv(agent=self._agent_id, model=model),
            )
        self._tell(self.view())

    def _tell(self, view: BudgetView) -> None:
        """Tell the owner when it has got worse today."""
        day, worst = self._told if self._told[0] == view.day else (view.day, BudgetState.NONE)
        if view.state not in (BudgetState.WARNED, BudgetState.STOPPED) or _ORDER.index(worst) >= _ORDER.index(
            view.state
        ):
            return
        self._told = (day, view.state)
        words = _WORDS[view.state]
        log.warning(words, extra=kv(agent=self._agent_id, **_figures(view)))
        fields = {"state": str(view.state), "day": view.day, **_figures(view)}
        self._events.send(ProcessEvent(kind=EventKind.BUDGET_STATE, agent_id=self._agent_id, fields=fields))

    def _refusal(self, view: BudgetView, words: str) -> BudgetExceededError:
        at = format_local(view.resumes_at, self._zone())
        return BudgetExceededError(
            f"{words} after {at}, or once my owner raises it",
            model="",
            retry_after_s=min(LOOK_S, max(1.0, (view.resumes_at - self._clock.now()).total_seconds())),
        )

    def _zone(self) -> tzinfo | None:
        name = self._settings().user_timezone
        if name is None:
            return None
        try:
            return parse_zone(name)
        except ConfigError:  # the machine's table of zones changed since the file was read
            return None


class BudgetedModel:
    """An agent's model behind its budget."""

    def __init__(self, model: AgentModel, budget: Budget) -> None:
        self._model = model
        self._budget = budget

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        """Ask and wait for the whole answer. Errors: ModelError; BudgetExceededError when nothing was sent."""
        self._budget.check(request.process, request.node)
        return await self._model.complete(request, on_delta)

    async def transcribe(self, audio: bytes, media_type: str, *, instruction: str) -> str:
        """The words of a recording. Errors: as `complete`."""
        self._budget.check(ProcessKind.CHANNEL)
        return await self._model.transcribe(audio, media_type, instruction=instruction)

    def context_window(self, process: ProcessKind) -> int:
        """Tokens that a request of this kind of process may have, answer included."""
        return self._model.context_window(process)


def _state(config: BudgetConfig, spent: Spent) -> BudgetState:
    shares = []
    if config.daily_usd is not None:
        shares.append(spent.usd / config.daily_usd)
    if config.daily_tokens is not None:
        shares.append(spent.tokens / config.daily_tokens)
    if not shares:
        return BudgetState.NONE
    if max(shares) >= 1:
        return BudgetState.STOPPED
    return BudgetState.WARNED if max(shares) >= config.warn_at else BudgetState.OK


def _figures(view: BudgetView) -> dict[str, EventValue]:
    return {
        "spent_usd": round(view.spent.usd, 4),
        "daily_usd": view.config.daily_usd,
        "spent_tokens": view.spent.tokens,
        "daily_tokens": view.config.daily_tokens,
    }


def _name(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _midnight(now: datetime, zone: tzinfo | None) -> datetime:
    """The next midnight of a zone; where clocks jump over it, the first moment of the day."""
    local = now.astimezone(zone)
    following = (local + timedelta(days=1)).date()
    midnight = datetime(following.year, following.month, following.day, tzinfo=zone)
    return (midnight if zone is not None else midnight.astimezone()).astimezone(now.tzinfo)
