"""How work is handed on: branch, spawn_worker, route, cancel; and how a worker reports: set_status.

Floor: tools
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from spacebot.base.errors import RefusedError, ToolError
from spacebot.base.redaction import scrub
from spacebot.base.text import cut_bytes, size_bytes
from spacebot.base.tree import Node
from spacebot.llm.choice import TASK_TYPES, normal_task_type
from spacebot.tools.contract import ToolArguments, ToolOutput

STATUS_BYTES = 256  # tools spec 8


class TwinError(RefusedError):
    """A worker does exactly the same already.

    Args:
        worker_id: which; None while it is just starting.
    """

    def __init__(self, message: str, worker_id: str | None) -> None:
        super().__init__(message)
        self.worker_id = worker_id


class ChannelHandle(Protocol):
    """What a channel lets its own tools and those of its branches do."""

    async def spawn_branch(self, description: str) -> str:
        """Start a branch; returns its id. Errors: LimitReachedError."""
        ...

    async def spawn_worker(
        self,
        task: str,
        *,
        is_interactive: bool,
        task_type: str | None,
        skill: str | None = None,
        directory: str | None = None,
        origin: Node | None = None,
    ) -> str:
        """Start a worker; returns its id.

        Args:
            directory: where OpenCode does the work; None for the built-in worker.

        Errors: LimitReachedError, TwinError (the same task runs already, or the directory is taken), ToolError (no
            such skill, no such directory, OpenCode cannot work).
        """
        ...

    def offers_opencode(self) -> bool:
        """Whether workers may be OpenCode."""
        ...

    def routed_task_types(self) -> tuple[str, ...]:
        """Kinds of work for which the owner has chosen a model."""
        ...

    def worker_abilities(self) -> tuple[str, ...]:
        """What workers have beside commands and files, as the live configuration has it."""
        ...

    async def route(self, worker_id: str, message: str) -> str:
        """Hand a message to a live worker; returns what will happen with it. Errors: ToolError."""
        ...

    def cancel(self, process_type: str, process_id: str, reason: str) -> bool:
        """End a live process of this channel; False when there is none of that id."""
        ...


class BranchArguments(ToolArguments):
    description: str = Field(description="what to find out, save or decide", min_length=1, max_length=20_000)


class Branch:
    """Start a branch."""

    name: ClassVar[str] = "branch"
    arguments: ClassVar[type[ToolArguments]] = BranchArguments

    def __init__(self, channel: ChannelHandle) -> None:
        self._channel = channel

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        branch_id = await self._channel.spawn_branch(scrub(arguments.description))
        return ToolOutput.of(
            branch_id=branch_id, spawned=True, message="It thinks now; the conclusion comes by itself."
        )


class SpawnWorkerArguments(ToolArguments):
    task: str = Field(description="everything the worker must know", min_length=1, max_length=50_000)
    interactive: bool = Field(False, description="keep it for follow-ups")
    task_type: str | None = Field(
        None, description=f"what kind of work it is, when one fits: {', '.join(TASK_TYPES)}", max_length=200
    )
    skill: str | None = Field(None, description="name of a skill from the list, when one fits", max_length=200)


class SpawnAnyWorkerArguments(SpawnWorkerArguments):
    worker_type: Literal["builtin", "opencode"] = "builtin"
    directory: str | None = Field(
        None, description="for opencode: the project's folder, absolute or from the workspace", max_length=1000
    )


class SpawnWorker:
    """Start a worker.

    Args:
        origin: the branch that holds this tool; a branch ends with the call, since it must not supervise.
    """

    name: ClassVar[str] = "spawn_worker"
    arguments: ClassVar[type[ToolArguments]] = SpawnWorkerArguments

    def __init__(self, channel: ChannelHandle, *, origin: Node | None = None) -> None:
        self._channel = channel
        self._origin = origin

    @property
    def words(self) -> Mapping[str, str]:
        """What its description says of the live configuration."""
        return {
            "abilities": ", ".join(self._channel.worker_abilities()),
            "routed_task_types": ", ".join(self._channel.routed_task_types()),
            "opencode": "yes" if self._channel.offers_opencode() else "",
        }

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        is_opencode = getattr(arguments, "worker_type", "builtin") == "opencode"
        try:
            worker_id = await self._channel.spawn_worker(
                scrub(arguments.task),
                is_interactive=arguments.interactive or is_opencode,
                task_type=normal_task_type(arguments.task_type),
                skill=arguments.skill or None,
                directory=(arguments.directory or "") if is_opencode else None,
                origin=self._origin,
            )
        except TwinError as error:
            return ToolOutput.of(worker_id=error.worker_id, spawned=False, message=str(error))
        output = ToolOutput.of(
            worker_id=worker_id,
            spawned=True,
            interactive=arguments.interactive or is_opencode,
            message="It works now; its result comes by itself.",
        )
        return ToolOutput(output.text, ends_turn=self._origin is not None)


class SpawnAnyWorker(SpawnWorker):
    """The same where workers may be OpenCode too."""

    arguments: ClassVar[type[ToolArguments]] = SpawnAnyWorkerArguments


def spawn_worker_tool(channel: ChannelHandle, *, origin: Node | None = None) -> SpawnWorker:
    """The tool as the configuration has it at this moment."""
    kind = SpawnAnyWorker if channel.offers_opencode() else SpawnWorker
    return kind(channel, origin=origin)


class RouteArguments(ToolArguments):
    worker_id: str
    message: str = Field(min_length=1, max_length=50_000)


class Route:
    """Hand a message to a worker."""

    name: ClassVar[str] = "route"
    arguments: ClassVar[type[ToolArguments]] = RouteArguments

    def __init__(self, channel: ChannelHandle) -> None:
        self._channel = channel

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        happens = await self._channel.route(arguments.worker_id, scrub(arguments.message))
        return ToolOutput.of(routed=True, worker_id=arguments.worker_id, message=happens)


class CancelArguments(ToolArguments):
    process_type: Literal["worker", "branch"]
    process_id: str
    reason: str = ""


class Cancel:
    """End a branch or worker."""

    name: ClassVar[str] = "cancel"
    arguments: ClassVar[type[ToolArguments]] = CancelArguments

    def __init__(self, channel: ChannelHandle) -> None:
        self._channel = channel

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        reason = scrub(arguments.reason) or "no longer wanted"
        if not self._channel.cancel(arguments.process_type, arguments.process_id, reason):
            raise ToolError(
                f"no live {arguments.process_type} has the id {arguments.process_id!r}; the status lists those that run"
            )
        return ToolOutput.of(cancelled=True, process_type=arguments.process_type, process_id=arguments.process_id)


class StatusSink(Protocol):
    """What a worker lets its status tool do."""

    def note_status(self, status: str) -> None:
        """Show where the work is."""
        ...

    def note_outcome(self, text: str, result: str) -> None:
        """Keep the account of the finished work."""
        ...


class SetStatusArguments(ToolArguments):
    status: str = Field(description="progress: a few words; outcome: the full account", min_length=1)
    kind: Literal["progress", "outcome"] = "progress"
    result: Literal["done", "partial", "blocked", "failed"] = Field("done", description="with an outcome: how it went")


class SetStatus:
    """Report progress or the outcome. The outcome ends the work on the current task."""

    name: ClassVar[str] = "set_status"
    arguments: ClassVar[type[ToolArguments]] = SetStatusArguments

    def __init__(self, sink: StatusSink) -> None:
        self._sink = sink

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        text = scrub(arguments.status.strip())
        if arguments.kind == "outcome":
            self._sink.note_outcome(text, arguments.result)
        self._sink.note_status(short_status(text))
        return (
            ToolOutput.of(success=True, kind=arguments.kind)
            if arguments.kind == "progress"
            else ToolOutput('{"success": true, "kind": "outcome"}', ends_turn=True)
        )


def short_status(text: str) -> str:
    """One line of at most 256 bytes, cut at a blank, with an ellipsis where something is missing."""
    line = " ".join(text.split())
    if size_bytes(line) <= STATUS_BYTES:
        return line
    head = cut_bytes(line, STATUS_BYTES - 3)
    return (head.rsplit(" ", 1)[0] if " " in head else head) + "…"
