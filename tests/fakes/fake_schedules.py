"""Real schedules of an agent without a mind: each run says the same, or what a test wants."""

from typing import Any

import trio

from spacebot.agent.crossing import Crossing
from spacebot.agent.scheduled import Schedules
from spacebot.base.clock import Clock
from spacebot.base.ids import ConversationId
from spacebot.config.model import AgentConfig
from spacebot.conversations.records import Accepted, TurnState
from spacebot.conversations.rooms import Rooms
from spacebot.cron.jobs import Jobs
from spacebot.messaging.messages import InboundMessage
from spacebot.storage.database import Database


class _Prompts:
    def render(self, name: str, **values: Any) -> str:
        return f"{name}: {values.get('prompt')}"


class _Runs:
    """Plays a run as soon as it is asked for."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._ends: dict[str, trio.Event] = {}

    def settling(self, conversation: ConversationId) -> trio.Event:
        return self._ends.setdefault(conversation, trio.Event())

    def wind_up(self, conversation: ConversationId, reason: str) -> None:
        """Nothing is at work."""

    def cut(self, conversation: ConversationId) -> None:
        self.settling(conversation).set()

    async def accept(self, message: InboundMessage) -> Accepted:
        accepted: Accepted = await self._agent.conversations.accept(message)
        words = self._agent.run_says
        state, reason = (TurnState.DONE, None) if words else (TurnState.FAILED, "no credit left")
        async with self._agent.turn(message.conversation_id, accepted, state=state, reason=reason) as turn:
            if words:
                await turn.say(words)
        self.settling(message.conversation_id).set()
        return accepted


def fake_schedules(agent: Any, database: Database, clock: Clock) -> Schedules:
    """Make them; `agent.run_says` is what runs say, nothing makes them fail."""
    agent.run_says = "Sunny."
    crossing = Crossing(
        Rooms(database, clock), agent.conversations, agent.delivery, agent_id=agent.id, events=agent.events
    )
    schedules = Schedules(
        Jobs(database, clock),
        crossing,
        _Prompts(),  # type: ignore[arg-type]
        agent_id=agent.id,
        settings=lambda: AgentConfig(id=agent.id, user_timezone="Europe/Berlin"),
        events=agent.events,
        clock=clock,
    )
    runs = _Runs(agent)
    schedules.accept, schedules.channels = runs.accept, runs
    return schedules
