"""From the platforms to the agents: who is admitted, which agent it is for, and onto disk.

Flow:    adapter -> Router.take -> admit -> Agent.take -> journal -> channel
Floor:   agent
Source:  design 4.2; messaging spec 1 and 9; pitfalls 3, 12, 13, 33, 34 of its section 19
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import trio

from spacebot.agent.agent import Agent
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import RefusedError, SpacebotError, StorageError
from spacebot.base.ids import AgentId, ConversationId, MessageId
from spacebot.base.telemetry import kv
from spacebot.config.model import Config
from spacebot.messaging.adapter import Receipt
from spacebot.messaging.bindings import Admission, Verdict, admit, is_named, may_command
from spacebot.messaging.messages import InboundMessage, MessageDeletion, MessageEdit, OutboundMessage, Target

log = logging.getLogger(__name__)

BOTS_IN_A_ROW = 5  # messages of bots that are answered without a person between them
BOTS_FORGET_S = 600.0
BOTS_WATCHED = 1000  # conversations whose bots are counted


@dataclass(slots=True)
class _Bots:
    count: int = 0
    at: float = 0.0


class Router:
    """Takes what adapters hand in; fills the protocol `Intake`."""

    def __init__(
        self,
        agents: Callable[[], Mapping[AgentId, Agent]],
        config: Callable[[], Config],
        default: Callable[[], AgentId],
        *,
        find: Callable[[AgentId], Awaitable[Agent]] | None = None,
    ) -> None:
        """Take what it decides by.

        Args:
            agents: those that can be spoken to now.
            find: waits for one that is just being opened, and raises a SpacebotError when it does not run; None
                takes those that run now.
        """
        self._agents = agents
        self._config = config
        self._default = default
        self._find = find
        self._bots: OrderedDict[str, _Bots] = OrderedDict()

    async def take(self, message: InboundMessage) -> Receipt:
        """Take a message; when this returns it is on disk, or refused. Errors: StorageError."""
        admission = self._admit(message)
        if admission.verdict is Verdict.REFUSE or admission.agent_id is None:
            log.debug("message refused", extra=kv(conversation=message.conversation_id, reason=admission.reason))
            return Receipt.REFUSED
        try:
            agent = await self._agent(admission.agent_id)
        except SpacebotError as error:  # nobody else answers for it: the platform keeps the message and tries again
            raise StorageError(f"not taken: {error}") from error
        observe = admission.verdict is Verdict.OBSERVE or self._is_bot_loop(message)
        is_listed = is_named(message, admission, self._config().messaging)
        message = replace(message, author=replace(message.author, is_listed=is_listed))
        try:
            return await agent.take(message, observe=observe, may_control=may_command(message, admission))
        except RefusedError as error:
            log.warning("message refused", extra=kv(conversation=message.conversation_id, reason=str(error)))
            return Receipt.REFUSED
        except StorageError:
            raise
        except Exception as error:  # boundary: message; it would come again for ever and keep all others waiting
            log.error("message broke its agent", exc_info=error, extra=kv(adapter=message.adapter_key))
            return Receipt.REFUSED

    async def edit(self, edit: MessageEdit) -> None:
        """A message was changed by its writer. Errors: StorageError."""
        for agent in self._agents().values():
            await agent.change(edit.conversation_id, edit.platform_id, edit.text)

    async def delete(self, deletion: MessageDeletion) -> None:
        """Messages were taken back. Errors: StorageError."""
        for agent in self._agents().values():
            for platform_id in deletion.platform_ids:
                await agent.change(deletion.conversation_id, platform_id, None)

    async def last_heard(self, adapter_key: str) -> Sequence[Target]:
        """The newest message of each conversation that was alive lately. Errors: StorageError."""
        return [target for agent in self._agents().values() for target in await agent.last_heard(adapter_key)]

    def is_admitted(self, message: InboundMessage) -> bool:
        """Whether `take` would not refuse it."""
        return self._admit(message).verdict is not Verdict.REFUSE

    def _admit(self, message: InboundMessage) -> Admission:
        config = self._config()
        known = {*self._agents(), *(agent.id for agent in config.agents)}  # whose rooms are nobody else's, run or not
        return admit(message, config.messaging, config.bindings, self._default(), agents=known)

    async def _agent(self, agent_id: AgentId) -> Agent:
        if self._find is not None:
            return await self._find(agent_id)
        agent = self._agents().get(agent_id)
        if agent is None:
            raise StorageError(f"agent {agent_id!r} does not run now")
        return agent

    def _is_bot_loop(self, message: InboundMessage) -> bool:
        """Whether bots have been talking among themselves for too long; a person's word ends that."""
        key = message.conversation_id
        if not message.author.is_bot:
            self._bots.pop(key, None)
            return False
        bots = self._bots.setdefault(key, _Bots())
        self._bots.move_to_end(key)
        if len(self._bots) > BOTS_WATCHED:
            self._bots.popitem(last=False)
        now = monotonic_s()
        if now - bots.at > BOTS_FORGET_S:
            bots.count = 0
        bots.count, bots.at = bots.count + 1, now
        if bots.count == BOTS_IN_A_ROW + 1:
            log.warning("bots talk in a circle; not answered until a person speaks", extra=kv(conversation=key))
        return bots.count > BOTS_IN_A_ROW


class Mailboxes:
    """What waits for those who fetch their answers, whichever agent it is of."""

    def __init__(self, agents: Callable[[], Mapping[AgentId, Agent]]) -> None:
        self._agents = agents

    async def waiting(self, conversation_id: ConversationId, limit: int) -> Sequence[tuple[str, OutboundMessage]]:
        """(id, message) of what waits in a conversation, oldest first."""
        found: list[tuple[str, OutboundMessage]] = []
        for agent in self._agents().values():
            found += [
                (parcel.message.id, parcel.message)
                for parcel in await agent.delivery.outbox.waiting(conversation_id, limit)
            ]
        return found[:limit]

    async def wait(self, conversation_id: ConversationId, timeout_s: float) -> None:
        """Return when something more waits in a conversation, or the time is up."""
        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:

                async def listen(agent: Agent) -> None:
                    await agent.delivery.wait_for_news(conversation_id)
                    nursery.cancel_scope.cancel()

                for agent in self._agents().values():
                    nursery.start_soon(listen, agent)

    async def delivered(self, ids: Sequence[str]) -> None:
        """Note that these were fetched."""
        for agent in self._agents().values():
            await agent.delivery.fetched([MessageId(message_id) for message_id in ids])
