"""What earlier workers did: worker_inspect lists them, or reads one's transcript. Running ones are not looked into.

Flow:    arguments -> WorkerArchive, as far as the conversation may see -> JSON for the model
Floor:   tools
Source:  tools spec 21, 24; process spec P56 (branches must not poll workers)
"""

from functools import partial
from typing import Any, ClassVar

import trio
from pydantic import Field

from spacebot.base.errors import StorageError, ToolError
from spacebot.base.redaction import scrub
from spacebot.base.text import preview
from spacebot.base.tree import Node
from spacebot.conversations.worker_runs import ENDED, WorkerArchive, WorkerEntry, readable_steps
from spacebot.memory.types import Viewer
from spacebot.tools.contract import LenientInt, ToolArguments, ToolOutput

LISTED, MOST_LISTED = 10, 50
MOST_STEPS = 200  # of a transcript, the newest
CALL_BYTES = RESULT_BYTES = 500
TASK_CHARACTERS = OUTCOME_CHARACTERS = 400  # in a list


class WorkerInspectArguments(ToolArguments):
    """Arguments of worker_inspect."""

    worker_id: str | None = Field(None, description="read the transcript of this one; without it they are listed")
    limit: LenientInt = Field(LISTED, description=f"how many to list, at most {MOST_LISTED}")
    here_only: bool = Field(True, description="list those of this conversation only")


class WorkerInspect:
    """Shows what workers did that have ended, as far as its viewer may see their conversations."""

    name: ClassVar[str] = "worker_inspect"
    arguments: ClassVar[type[ToolArguments]] = WorkerInspectArguments

    def __init__(self, *, workers: WorkerArchive, viewer: Viewer) -> None:
        self._workers = workers
        self._viewer = viewer

    async def call(self, arguments: WorkerInspectArguments, node: Node) -> ToolOutput:
        """List workers, or read one."""
        try:
            if worker_id := (arguments.worker_id or "").strip():
                return await self._transcript(worker_id)
            entries = await self._workers.page(
                self._viewer,
                limit=min(max(arguments.limit, 1), MOST_LISTED),
                state=ENDED,
                channel_id=self._viewer.channel_id if arguments.here_only else None,
            )
        except StorageError as error:
            raise ToolError(str(error)) from error
        return ToolOutput.of(
            action="list",
            workers=[_line(entry) for entry in entries],
            summary=f"{len(entries)} workers that have ended, the newest first" if entries else "No worker has ended.",
        )

    async def _transcript(self, worker_id: str) -> ToolOutput:
        found = await self._workers.get(self._viewer, worker_id)
        if found is None:
            raise ToolError(
                f"no worker {preview(worker_id)!r} can be seen from here; call worker_inspect without an id for a list"
            )
        entry, transcript = found
        if entry.is_live:
            raise ToolError("that worker has not ended; its result comes by itself, so do not wait for it here")
        if transcript is None:
            return ToolOutput.of(action="transcript", **_line(entry), note="its transcript is not kept any more")
        read = partial(
            readable_steps,
            transcript,
            call_bytes=CALL_BYTES,
            result_bytes=RESULT_BYTES,
            text_bytes=4 * RESULT_BYTES,
            most=MOST_STEPS,
        )
        shown = await trio.to_thread.run_sync(read)
        return ToolOutput.of(
            action="transcript",
            **_line(entry),
            steps=[step.to_json_object() for step in shown.steps],
            left_out=shown.left_out or None,
        )


def _line(entry: WorkerEntry) -> dict[str, Any]:
    return {
        "worker_id": entry.id,
        "channel": entry.channel_name or entry.channel_id,
        "task": preview(scrub(entry.task), TASK_CHARACTERS),
        "task_type": entry.task_type,
        "state": str(entry.state),
        "outcome": preview(scrub(entry.result or ""), OUTCOME_CHARACTERS) or None,
        "tool_calls": entry.tool_calls,
        "started_at": entry.started_at,
        "completed_at": entry.completed_at,
    }
