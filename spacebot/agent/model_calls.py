"""Model calls as observers see them: whose, which model, how long, how it ended. Nothing of what was said.

Floor:  agent
Source: control spec 6.5
"""

from spacebot.agent.parts import AgentModel
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import ModelError
from spacebot.base.events import EventBus, EventKind
from spacebot.llm.messages import ModelReply, ModelRequest, OnDelta, ProcessKind, StreamDelta

OK, CANCELLED = "ok", "cancelled"


class MeasuredModel:
    """A model whose calls are told on the bus when they end."""

    def __init__(self, model: AgentModel, events: EventBus, agent_id: str) -> None:
        self._model = model
        self._events = events
        self._agent_id = agent_id

    def context_window(self, process: ProcessKind) -> int:
        """Tokens that a request of this kind of process may have, answer included."""
        return self._model.context_window(process)

    async def transcribe(self, audio: bytes, media_type: str, *, instruction: str) -> str:
        """The words of a recording. Errors: ModelError."""
        return await self._model.transcribe(audio, media_type, instruction=instruction)

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        """Ask and wait for the whole answer. Errors: ModelError."""
        began, first_s = monotonic_s(), None

        def watch(delta: StreamDelta) -> None:
            nonlocal first_s
            if first_s is None:
                first_s = round(monotonic_s() - began, 4)
            if on_delta is not None:
                on_delta(delta)

        outcome, model = CANCELLED, None
        try:
            reply = await self._model.complete(request, watch)
            outcome, model = OK, reply.model
        except ModelError as error:
            outcome, model = type(error).__name__, error.model
            raise
        finally:
            node = request.node
            self._events.emit(
                EventKind.MODEL_CALL,
                agent_id=self._agent_id,
                channel_id=None if node is None else node.channel_id,
                process_type=str(request.process),
                process_id=None if node is None else node.id,
                model=model,
                outcome=outcome,
                duration_s=round(monotonic_s() - began, 4),
                first_token_s=first_s,
            )
        return reply
