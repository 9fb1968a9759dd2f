"""Schedules from the talk: make a job, list them, delete one, run one now.

Floor:  tools
Source: tools spec 9.1
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from spacebot.base.errors import NotFoundError, RefusedError, ToolError
from spacebot.base.tree import Node
from spacebot.tools.channel import refuse_secret
from spacebot.tools.contract import LenientInt, ToolArguments, ToolOutput


class CronHandle(Protocol):
    """What the conversation lets the tool do. Errors of all: NotFoundError, RefusedError, ToolError, StorageError."""

    async def create(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make a job of these fields; returns it."""
        ...

    async def jobs(self) -> Sequence[Mapping[str, Any]]:
        """The jobs that this conversation may know of."""
        ...

    async def delete(self, job_id: str) -> None:
        """Delete a job of this conversation."""
        ...

    async def run_now(self, job_id: str) -> None:
        """Have a job of this conversation run now."""
        ...


class CronArguments(ToolArguments):
    action: Literal["create", "list", "delete", "run"]
    id: str | None = Field(default=None, description="short name of the job: letters, digits, - and _", max_length=50)
    prompt: str | None = Field(
        default=None,
        description="what to do in each run, complete in itself: a run knows nothing else",
        max_length=10_000,
    )
    cron_expr: str | None = Field(
        default=None, description="five fields: minute hour day month weekday, such as 0 9 * * 1-5"
    )
    interval_secs: LenientInt | None = Field(
        default=None, description="instead of cron_expr: seconds between runs, at least 60; with run_once: in so many"
    )
    timezone: str | None = Field(default=None, description="IANA name, when not the usual one")
    delivery_target: str | None = Field(
        default=None, description="left out: this conversation; or home, the name of a channel, adapter:address"
    )
    active_start_hour: LenientInt | None = Field(default=None, description="0 to 23")
    active_end_hour: LenientInt | None = Field(default=None, description="0 to 23; may lie over midnight")
    run_once: bool = False
    timeout_secs: LenientInt | None = Field(default=None, description="longest time of a run; 120 when left out")


class Cron:
    """The schedules, as far as this conversation may see and change them."""

    name: ClassVar[str] = "cron"
    arguments: ClassVar[type[ToolArguments]] = CronArguments

    def __init__(self, desk: CronHandle) -> None:
        self._desk = desk

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        try:
            return await self._act(arguments)
        except (NotFoundError, RefusedError) as error:
            raise ToolError(str(error)) from error

    async def _act(self, arguments: CronArguments) -> ToolOutput:
        if arguments.action == "list":
            return ToolOutput.of(success=True, jobs=list(await self._desk.jobs()))
        if arguments.action == "create":
            if not arguments.prompt or not arguments.prompt.strip():
                raise ToolError("a job needs a prompt: what to do in each run")
            fields = arguments.model_dump(exclude={"action"}, exclude_none=True)
            refuse_secret("\n".join(map(str, fields.values())), "the job")
            fields["id"] = arguments.id or slug(arguments.prompt)
            return ToolOutput.of(success=True, message="It is scheduled.", job=await self._desk.create(fields))
        if not arguments.id:
            raise ToolError(f"{arguments.action} needs the id of a job; list shows them")
        if arguments.action == "delete":
            await self._desk.delete(arguments.id)
            return ToolOutput.of(success=True, message="It is deleted.")
        await self._desk.run_now(arguments.id)
        return ToolOutput.of(success=True, message="It runs now; its result is delivered by itself.")


def slug(text: str) -> str:
    """A name for a job from its first words."""
    words = re.findall(r"[a-z0-9]+", text.casefold())[:5]
    return "-".join(words)[:40].strip("-") or "job"
