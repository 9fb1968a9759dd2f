"""A worker whose work is done by the OpenCode program, in a folder that is its alone and a session of its own.

    RUNNING ──idle──> result ──> WAITING ──follow-up──> RUNNING
       │ └──question or permission──> WAITING ──the user's answer──> RUNNING
       └──server gone──> started again, the session goes on

Always interactive. What it found is delivered at the end of each piece of work; what it has to know from a person is
delivered as a result too, and the answer comes back by `route`. Its end stops the remote session first.

Floor:  agent
Source: tools spec 12 and 23 (OpenCode); process spec 7.11, P46, P62
"""

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, Literal

import trio

from spacebot.agent.parts import AgentParts
from spacebot.agent.toolsets import open_view
from spacebot.base.errors import ExternalError, LimitReachedError, StorageError, ToolError
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node, NodeState, Outcome
from spacebot.conversations.records import WorkerRun
from spacebot.tools.delegation import short_status
from spacebot.tools.opencode.events import (
    ABORTED,
    Event,
    Failed,
    Idle,
    MessageSeen,
    PartGrew,
    PartSeen,
    PermissionAsked,
    QuestionAsked,
    Retrying,
    SessionOpened,
    answers_of,
)
from spacebot.tools.opencode.pool import Claim
from spacebot.tools.opencode.server import OpenCodeServer
from spacebot.tools.opencode.transcript import Transcript, status_of
from spacebot.tools.opencode.wire import OpenCodeApi, ServerLostError
from spacebot.tools.sandbox import Containment

log = logging.getLogger(__name__)

FOLLOW_UPS = 32  # waiting messages for one worker; further ones are refused
SILENCE_S = 600.0  # without any event of its session; a heartbeat is none (tools spec 12.1)
EVENTS = 1000  # that wait to be looked at; more, and the server's stream waits
CHECKPOINT_S = 5.0  # between two writings of the transcript while it works
RESULT_CHARACTERS = 40_000  # of a result, the last ones

PREFIX = "[opencode] "  # of every status

_YES = frozenset({"once", "yes", "y", "ok", "okay", "allow", "allowed", "approve", "approved", "sure"})
_NO = frozenset({"reject", "rejected", "no", "n", "deny", "denied"})


class OpenCodeWorker:
    """One live worker; the channel owns its node and settles its end."""

    def __init__(
        self,
        parts: AgentParts,
        node: Node,
        run: WorkerRun,
        *,
        claim: Claim,
        brief: str | None = None,
        publish: Callable[[Outcome], Awaitable[None]],
        changed: Callable[[Any], None],
    ) -> None:
        """Take what the worker needs.

        Args:
            claim: its folder; given back when it ends.
            brief: what it reads first instead of the bare task.
            publish: commits a piece of work, or a question, of a worker that lives on, and tells the channel.
            changed: called when status or state changed.
        """
        self._parts = parts
        self._node = node
        self._run = run
        self._claim = claim
        self._brief = brief or run.task
        self._publish = publish
        self._changed = changed
        self.is_waiting = run.state is NodeState.WAITING
        self._inbox_send, self._inbox = trio.open_memory_channel[str](FOLLOW_UPS)
        self._transcript = Transcript(run.transcript)
        self._session = run.session_id
        self._knows_session = False  # what was said in it before this life
        self._api: OpenCodeApi | None = None  # of the server that worked for it last
        self._clock = trio.CancelScope()
        self._checkpoint_at = 0.0
        self._late_answer = ""  # of a person, to a server that was gone by then
        self._notes: list[str] = []  # for the next result
        self._has_asked = False  # the present piece of work reached the session
        self._tools_seen: set[str] = set()

    @property
    def run_row(self) -> WorkerRun:
        """The worker as its row has it."""
        return self._run

    @property
    def node(self) -> Node:
        """The worker in the supervision tree."""
        return self._node

    @property
    def transcript(self) -> str:
        """All that was said and done, as JSON text of model messages."""
        return self._transcript.to_json()

    @property
    def found(self) -> str:
        """What the work has come to when it ends without an account."""
        words = self._transcript.words()[-RESULT_CHARACTERS:]
        return words or (f"last status: {self._node.status}" if self._node.status else "nothing reported")

    def keep_unread(self) -> None:
        """Put what was handed in but not seen yet into the transcript: the program is stopping."""
        with suppress(trio.WouldBlock):
            while True:
                self._transcript.note_unread(self._inbox.receive_nowait())

    def route(self, message: str) -> str:
        """Hand in a message; returns what will happen with it.

        Errors: ToolError when too many wait already.
        """
        waiting = self._node.state is NodeState.WAITING
        try:
            self._inbox_send.send_nowait(message)
        except trio.WouldBlock:
            raise ToolError(f"{FOLLOW_UPS} messages wait for this worker already; try later") from None
        return "it goes on with this now" if waiting else "it sees this at its next step"

    async def run(self) -> Outcome:
        """Work; the outcome of the last piece of work, or of the waiting, is the worker's."""
        is_over = True
        try:
            async with open_view(self._parts, self._node) as containment:
                try:
                    return await self._run_pieces(containment)
                except trio.Cancelled:
                    is_over = self._node.requested is not None  # else the program stops, and it goes on afterwards
                    raise
                finally:
                    with trio.CancelScope(shield=True):
                        await self._leave(is_over=is_over)  # before the view's folders go
        finally:
            with trio.CancelScope(shield=True):
                await self._leave(is_over=is_over)

    async def _leave(self, *, is_over: bool) -> None:
        """Stop the remote session, then the server, then give the folder back."""
        with trio.CancelScope(shield=True):
            api, self._api = self._api, None
            if api is not None and self._session is not None:
                await api.abort(self._session)
            await self._claim.release(is_over=is_over)

    async def _run_pieces(self, containment: Containment) -> Outcome:
        prompt: str | None = self._brief
        if self._run.state is NodeState.WAITING:
            prompt = None
        elif self._run.state is NodeState.INTERRUPTED and self._session is not None:
            unread = self._transcript.left_unread
            prompt = "\n\n".join(filter(None, (self._parts.prompts.render("fragments/opencode_resume"), unread)))
        while True:
            if prompt is None:
                self._set_state(NodeState.WAITING, self._node.status or "waiting for input")
                prompt = await self._next_words(self._parts.settings().worker.idle_timeout_secs)
                if prompt is None:
                    return Outcome(NodeState.DONE, self.found)  # told already
            self._set_state(NodeState.RUNNING, short_status(prompt))
            outcome = await self._work(prompt, containment)
            if outcome.state is NodeState.TIMED_OUT:
                return outcome
            self._set_state(NodeState.WAITING, self._node.status or "waiting for input")
            await self._publish(outcome)
            prompt = None

    async def _next_words(self, patience_s: float) -> str | None:
        """What is handed in next; None when nothing comes for long."""
        with trio.move_on_after(patience_s) as patience:
            return await self._inbox.receive()
        assert patience.cancelled_caught
        try:
            return self._inbox.receive_nowait()  # it came at the very end
        except trio.WouldBlock:
            return None

    async def _work(self, prompt: str, containment: Containment) -> Outcome:
        """Do one piece of work within the wall clock; waiting for people does not count."""
        limit_s = self._parts.settings().worker.wall_clock_timeout_secs
        with trio.move_on_after(limit_s) as self._clock:
            return await self._work_on_servers(prompt, containment)
        return Outcome(NodeState.TIMED_OUT, f"stopped after {limit_s:.0f} s of work. So far: {self.found}")

    async def _work_on_servers(self, prompt: str, containment: Containment) -> Outcome:
        """Do it on one server, and on the next when that one dies."""
        before = self._transcript.known
        retries = self._parts.settings().opencode.max_restart_retries
        self._has_asked, words = False, prompt
        for _ in range(retries + 1):
            try:
                async with self._claim.use(self._node, containment) as server:
                    return await self._converse(server, words, before)
            except ServerLostError as error:
                self._api = None
                log.warning("opencode lost", extra=kv(worker_id=self._node.id, error=str(error)))
                self.note_status("OpenCode ended; it is started again")
                await self._claim.close()
                if self._has_asked:
                    resume = self._parts.prompts.render("fragments/opencode_resume")
                    words = "\n\n".join(filter(None, (resume, self._late_answer)))
                    self._late_answer = ""
            except (ToolError, LimitReachedError, ExternalError) as error:
                return Outcome(NodeState.FAILED, f"{scrub(str(error))}. So far: {self.found}")
        return Outcome(
            NodeState.FAILED, f"OpenCode ended {retries + 1} times while it worked on this. So far: {self.found}"
        )

    async def _converse(self, server: OpenCodeServer, words: str, before: Collection[str]) -> Outcome:
        """Ask, and follow what happens to its end. Errors: ExternalError, ServerLostError."""
        api = server.api
        session, words = await self._enter_session(api, words)
        model = server.setup.model_name
        send, receive = trio.open_memory_channel[Event](EVENTS)
        listening = trio.Event()
        failure: ExternalError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, api, send, listening)
            try:
                await listening.wait()  # nothing of what follows may be missed
                self._api = api
                await self._prompt(words, session, model)
                self._has_asked = True
                outcome = await self._follow(api, receive, session, model, before)
            except ExternalError as error:
                failure = error  # raised below, so that no group stands around it
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return outcome

    async def _enter_session(self, api: OpenCodeApi, words: str) -> tuple[str, str]:
        """The session to work in, and what is said there first."""
        if self._session is not None:
            if await api.has_session(self._session):
                if not self._knows_session:
                    self._transcript.skip(await api.messages(self._session))
                    self._knows_session = True
                return self._session, words
            log.warning("session of opencode is gone, a new one begins", extra=kv(worker_id=self._node.id))
            message = words if words != self._brief and not self._has_asked else ""
            words = self._parts.prompts.render("fragments/opencode_lost", task=self._brief, message=message)
        self._session = await api.create_session(f"spacebot-worker-{self._node.id}")
        self._knows_session = True
        with suppress(StorageError):  # then a restart begins a new one
            await self._parts.conversations.note_session(self._node.id, self._session)
        return self._session, words

    async def _prompt(self, words: str, session: str, model: str) -> None:
        assert self._api is not None
        system = self._parts.prompts.render("fragments/opencode_system", directory=str(self._claim.directory))
        await self._api.prompt(session, words, system=system, model=model)

    async def _follow(
        self,
        api: OpenCodeApi,
        events: trio.MemoryReceiveChannel[Event],
        session: str,
        model: str,
        before: Collection[str],
    ) -> Outcome:
        """Take events until the session is idle after work, fails, or is silent for too long."""
        family = {session}  # with sessions that do a part of the work
        old = self._transcript.known
        while True:
            event = await self._next_event(events, family)
            if event is None:
                return Outcome(
                    NodeState.TIMED_OUT,
                    f"OpenCode gave no sign of life for {SILENCE_S:.0f} s and was stopped. So far: {self.found}",
                )
            self._node.progress()
            if isinstance(event, Failed) and event.session in ("", session):
                words = "it was stopped from outside" if event.name == ABORTED else scrub(event.words)
                return self._with_notes(NodeState.FAILED, f"OpenCode gave up: {words}. So far: {self.found}")
            if isinstance(event, Idle) and event.session == session:
                # An early one, from before the prompt, is usual; and what was handed in meanwhile keeps it busy.
                if self._has_answer(old) and not await api.is_busy(session):
                    return await self._result(api, session, before)
            elif isinstance(event, PermissionAsked | QuestionAsked):
                await self._ask(api, event)
            else:
                self._note(event, session)
            await self._checkpoint_now_and_then()
            while (message := self._handed_in()) is not None:
                old = self._transcript.known
                words = self._parts.prompts.render("fragments/worker_injected", message=message)
                await self._prompt(words, session, model)

    async def _next_event(self, events: trio.MemoryReceiveChannel[Event], family: set[str]) -> Event | None:
        """The next event of these sessions; None after a long silence. Errors: ServerLostError."""
        with trio.move_on_after(SILENCE_S):
            while True:
                try:
                    event = await events.receive()
                except trio.EndOfChannel:
                    raise ServerLostError("opencode's event stream ended") from None
                if isinstance(event, SessionOpened):
                    if event.parent in family:
                        family.add(event.session)
                elif event.session in family or (isinstance(event, Failed) and not event.session):
                    return event
        return None

    def _has_answer(self, old: Collection[str]) -> bool:
        return any(self._transcript.is_answer(key) for key in self._transcript.known - set(old))

    def _note(self, event: Event, session: str) -> None:
        """Keep what was said and done; show what it does."""
        if isinstance(event, Retrying):
            self.note_status(short_status(f"the model does not answer (try {event.attempt}): {scrub(event.words)}"))
            return
        if event.session == session:
            if isinstance(event, MessageSeen):
                self._transcript.note_message(event)
            elif isinstance(event, PartSeen):
                self._transcript.note_part(event)
            elif isinstance(event, PartGrew):
                self._transcript.note_growth(event)
        if isinstance(event, PartSeen) and event.kind == "tool" and event.state == "running":
            if event.part not in self._tools_seen:
                self._tools_seen.add(event.part)
                self._node.tool_calls += 1
            if (status := short_status(scrub(status_of(event)))) != self._node.status:
                self.note_status(status)

    async def _result(self, api: OpenCodeApi, session: str, before: Collection[str]) -> Outcome:
        """All that was said in this piece of work; what was gathered when the server cannot be asked any more."""
        with suppress(ExternalError):
            await self._transcript.replace(await api.messages(session), but=before)
        words = self._transcript.words(before)
        if words:
            return self._with_notes(NodeState.DONE, words[-RESULT_CHARACTERS:])
        if self._transcript.has_done(before):
            last = f"; the last step was: {self._node.status}" if self._node.status else ""
            return self._with_notes(NodeState.PARTIAL, f"OpenCode worked and ended without a word{last}")
        return self._with_notes(NodeState.FAILED, "OpenCode ended without a word and without doing anything")

    def _with_notes(self, state: NodeState, text: str) -> Outcome:
        notes, self._notes = self._notes, []
        return Outcome(state, "\n\n".join((*notes, text)))

    # People

    async def _ask(self, api: OpenCodeApi, event: PermissionAsked | QuestionAsked) -> None:
        """Have the user decide, and hand the answer on."""
        patience_s = self._parts.settings().worker.idle_timeout_secs
        text = self._question_text(event, max(1, round(patience_s / 60)))
        left_s, self._clock.deadline = self._clock.deadline - trio.current_time(), float("inf")
        status = self._node.status
        self._set_state(NodeState.WAITING, "waiting for the user's answer")
        await self._publish(Outcome(NodeState.PARTIAL, scrub(text)))
        reply = await self._next_words(patience_s)
        self._clock.deadline = trio.current_time() + left_s
        self._set_state(NodeState.RUNNING, status)
        await self._checkpoint()
        try:
            await self._answer(api, event, reply)
        except ServerLostError:
            self._late_answer = reply or ""
            raise

    def _question_text(self, event: PermissionAsked | QuestionAsked, minutes: int) -> str:
        if isinstance(event, QuestionAsked):
            return self._parts.prompts.render("fragments/opencode_question", questions=event.questions, minutes=minutes)
        return self._parts.prompts.render(
            "fragments/opencode_permission",
            permission=event.permission,
            patterns="; ".join(event.patterns)[:1000],
            directory=str(self._claim.directory),
            minutes=minutes,
        )

    async def _answer(self, api: OpenCodeApi, event: PermissionAsked | QuestionAsked, reply: str | None) -> None:
        if isinstance(event, PermissionAsked):
            if reply is None:
                self._notes.append(self._parts.prompts.render("fragments/opencode_no_answer"))
            decision, reason = decision_of(reply or "")
            await api.answer_permission(event.id, decision, reason)
            return
        if reply is not None:
            await api.answer_question(event.id, answers_of(reply, event.questions))
            return
        choices = [question.options[:1] or ("go on as you think best",) for question in event.questions]
        choice = "; ".join(choice[0] for choice in choices)
        self._notes.append(self._parts.prompts.render("fragments/opencode_no_answer", choice=choice))
        await api.answer_question(event.id, choices)

    def _handed_in(self) -> str | None:
        try:
            return self._inbox.receive_nowait()
        except trio.WouldBlock:
            return None

    # State

    def note_status(self, status: str) -> None:
        """Show where the work is."""
        self._node.progress(status if status.startswith(PREFIX) else short_status(PREFIX + status))
        self._changed(self)

    def _set_state(self, state: NodeState, status: str) -> None:
        self._node.state = state
        self.is_waiting = state is NodeState.WAITING
        self.note_status(status)

    async def _checkpoint_now_and_then(self) -> None:
        if trio.current_time() >= self._checkpoint_at:
            self._checkpoint_at = trio.current_time() + CHECKPOINT_S
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        """Keep the transcript; work goes on when the disk refuses it."""
        try:
            await self._parts.conversations.checkpoint_worker(
                self._run.id,
                state=self._node.state,
                status=self._node.status,
                transcript=self.transcript,
                tool_calls=self._node.tool_calls,
            )
        except StorageError as error:
            log.warning("worker's transcript not written", extra=kv(id=self._run.id, error=str(error)))


def decision_of(reply: str) -> tuple[Literal["once", "always", "reject"], str]:
    """A person's words as an answer to a wish for permission: what counts, and the reason of a refusal."""
    first, _, rest = reply.strip().partition(" ")
    word = first.strip(".,:;!\"'`").casefold()
    if word == "always":
        return "always", ""
    if word in _YES:
        return "once", ""
    return "reject", (rest.strip(" ,:;.-") if word in _NO else reply.strip())


async def _listen(api: OpenCodeApi, send: trio.MemorySendChannel[Event], begun: trio.Event) -> None:
    """Hand on events; an end of the stream, whatever its cause, is seen as the end of the channel."""
    try:
        with suppress(ExternalError):
            await api.listen(send, begun)
    finally:
        send.close()
        begun.set()
