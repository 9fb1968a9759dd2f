"""What the command line asks about an agent's memory: one function per operation, used by two doors.

While the program runs, the control socket leads here; while it does not, the command opens the store itself and calls
the same functions. A request is a JSON object and so is every answer, whichever door was taken. The owner's tool sees
everything, private memories included, and looking counts as no access.

Flow:    memory_commands -> Operation.run ; open_desk -> Operation.run
Floor:   api
Source:  memory spec 17
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Protocol, TypeVar

import trio

from spacebot.agent.forgetting import Forgetting, ForgottenPerson, Traces
from spacebot.agent.worker_desk import WorkerDesk
from spacebot.agent.worker_log import WorkerLog
from spacebot.base.clock import Clock, to_text
from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.base.events import EventBus
from spacebot.base.ids import AgentId
from spacebot.base.paths import AgentPaths, package_file
from spacebot.config.model import WorkerLogMode
from spacebot.conversations.worker_runs import WorkerArchive
from spacebot.memory.embedding import Embedder, OnnxEmbedder
from spacebot.memory.keeper import TableState
from spacebot.memory.maintenance import MaintenancePolicy, MaintenanceReport
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.transfer import MemoryTransfer, Progress
from spacebot.memory.types import (
    EVERYTHING,
    Hit,
    Memory,
    MemoryType,
    NewMemory,
    Provenance,
    Query,
    SearchMode,
    SortBy,
)
from spacebot.memory.views import MemoryViews, Seen
from spacebot.storage.database import open_database

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

JsonObject = Mapping[str, Any]

PROGRESS_S = 0.5  # between two lines that say how far it is
TEXT = 200_000  # characters of an export in one answer
MOST = 1000  # results of one search
SOURCE = "command line"
MAX_FILE = 1 << 40  # bytes that may follow a request
SILENCE_S = 30.0  # a client that sends nothing for so long is let go


class Send(Protocol):
    """The way back: one answer, named by its kind."""

    def __call__(self, result: str, **fields: Any) -> Awaitable[None]: ...


class MemoryDesk(Protocol):
    """What the operations need of an agent, whether it runs or not."""

    @property
    def memory(self) -> AgentMemory:
        """What the agent knows."""
        ...

    @property
    def memory_views(self) -> MemoryViews:
        """The same for looking at it."""
        ...

    @property
    def transfer(self) -> MemoryTransfer:
        """Export, import, ids by their beginning."""
        ...

    @property
    def maintenance_policy(self) -> MaintenancePolicy:
        """How the configuration wants memories to be looked after."""
        ...

    async def traces_of(self, person: str) -> Traces:
        """What there is of a person."""
        ...

    async def forget_person(self, person: str, *, reason: str) -> ForgottenPerson:
        """Erase everything of a person."""
        ...


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to ask for.

    Args:
        is_long: it is given up when whoever asked leaves.
        takes_file: the lines of a file follow the request.
    """

    run: Callable[[MemoryDesk, JsonObject, Send, BinaryIO | None], Awaitable[None]]
    is_long: bool = False
    takes_file: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedAgent:
    """The memory of an agent that does not run; fills `MemoryDesk`."""

    memory: AgentMemory
    memory_views: MemoryViews
    transfer: MemoryTransfer
    forgetting: Forgetting
    maintenance_policy: MaintenancePolicy

    async def traces_of(self, person: str) -> Traces:
        """What there is of a person."""
        return await self.forgetting.traces_of(person)

    async def forget_person(self, person: str, *, reason: str) -> ForgottenPerson:
        """Erase everything of a person."""
        return await self.forgetting.forget_person(person, reason=reason)


@asynccontextmanager
async def open_desk(
    agent_id: AgentId, paths: AgentPaths, embedder: Embedder, log_folder: Path, policy: MaintenancePolicy
) -> AsyncIterator[ClosedAgent]:
    """Open the memory of an agent that does not run; the caller holds the instance's lock.

    Errors: ConfigError, StorageError.
    """
    clock, events = Clock(), EventBus()
    await trio.to_thread.run_sync(paths.create)
    async with (
        open_database(paths.database, package_file("storage", "sql"), clock) as database,
        open_memory(
            database, paths.vectors, embedder=embedder, events=events, agent_id=agent_id, clock=clock
        ) as memory,
    ):
        forgetting = Forgetting(database, memory, clock, vectors=paths.vectors, log_folder=log_folder)
        files = WorkerDesk(
            WorkerArchive(database, clock), WorkerLog(paths.logs), clock, mode=lambda: WorkerLogMode.ERRORS_ONLY
        )
        forgetting.drop_worker_files = files.forget_conversations
        yield ClosedAgent(
            memory=memory,
            memory_views=MemoryViews(database, clock),
            transfer=MemoryTransfer(database, memory, embedder, clock),
            maintenance_policy=policy,
            forgetting=forgetting,
        )


async def _search(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    memory_type = _choice(request, "memory_type", MemoryType)
    result = await desk.memory.recall(
        Query(
            viewer=EVERYTHING,
            text=_text(request, "query", ""),
            mode=_choice(request, "mode", SearchMode) or SearchMode.HYBRID,
            memory_type=memory_type,
            sort_by=_choice(request, "sort_by", SortBy) or SortBy.RECENT,
            limit=_number(request, "limit", 10, MOST),
            counts_as_access=False,
        )
    )
    await send(
        "memories",
        memories=[hit_object(hit) for hit in result.hits],
        total_found=result.total_found,
        notes=list(result.notes),
    )


async def _show(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    memory_id = await desk.transfer.resolve(_text(request, "id"))
    detail = await desk.memory_views.detail(memory_id, EVERYTHING)
    await send(
        "memory",
        memory=seen_object(detail.seen),
        associations=[
            {
                **asdict(edge),
                "other": memory_object(detail.others[other].memory),
                "is_outgoing": edge.source_id == memory_id,
            }
            for edge in detail.edges
            if (other := edge.target_id if edge.source_id == memory_id else edge.source_id) in detail.others
        ],
    )


async def _add(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    person = request.get("person")
    importance = request.get("importance")
    if importance is not None and (isinstance(importance, bool) or not isinstance(importance, int | float)):
        raise RefusedError("importance must be a number from 0 to 1")
    saved = await desk.memory.save(
        NewMemory(
            content=_text(request, "content"),
            memory_type=_choice(request, "memory_type", MemoryType) or MemoryType.FACT,
            importance=importance,
            provenance=Provenance(source=SOURCE),
            subject=None if person is None else Traces.check(_text(request, "person")),
            permanent=bool(request.get("permanent")),
        )
    )
    await send(
        "saved",
        memory=memory_object(saved.memory),
        is_new=saved.is_new,
        is_embedded=saved.is_embedded,
        associations=len(saved.auto_associations),
        near_duplicates=[near.id for near in saved.near_duplicates],
    )


async def _forget(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    memory_id = await desk.transfer.resolve(_text(request, "id"))
    memory = await desk.memory.forget(memory_id, _text(request, "reason", "") or None)
    if memory is None:
        raise NotFoundError(f"the memory {memory_id} was forgotten before")
    await send("forgotten", memory=memory_object(memory))


async def _person(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    await send("person", **asdict(await desk.traces_of(_text(request, "person"))))


async def _forget_person(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    done = await desk.forget_person(_text(request, "person"), reason="asked for by the owner")
    await send("person_forgotten", **asdict(done))


async def _stats(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    stats = asdict(await desk.memory.stats())
    stats["counts_by_type"] = {str(kind): count for kind, count in stats["counts_by_type"].items()}
    await send("stats", **stats)


async def _export(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    async with desk.transfer.export(private=bool(request.get("private"))) as (counts, pieces):
        await send("export", **asdict(counts))
        async for piece in pieces:
            text = piece.decode()
            for start in range(0, len(text), TEXT):
                await send("piece", text=text[start : start + TEXT])
    await send("end", **asdict(counts))


async def _import(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    assert file is not None
    run = partial(desk.transfer.import_file, file, dry_run=bool(request.get("dry_run")))
    report = await _telling(send, lambda note: run(on_progress=note))
    await send("imported", **asdict(report))


async def _rebuild(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    async def work(note: Callable[[Any], None]) -> TableState:
        return await desk.memory.rebuild(lambda stage, done, total: note(Progress(phase=stage, done=done, total=total)))

    await send("rebuilt", **asdict(await _telling(send, work)))


async def _maintain(desk: MemoryDesk, request: JsonObject, send: Send, file: BinaryIO | None) -> None:
    async def work(note: Callable[[Any], None]) -> MaintenanceReport:
        return await desk.memory.maintain(
            desk.maintenance_policy,
            dry_run=bool(request.get("dry_run")),
            on_progress=lambda now: note(Progress(phase=str(now.step), done=now.done, total=now.total)),
        )

    await send("maintained", **asdict(await _telling(send, work)))


OPERATIONS: Mapping[str, Operation] = {
    "memory_search": Operation(_search),
    "memory_show": Operation(_show),
    "memory_add": Operation(_add),
    "memory_forget": Operation(_forget),
    "memory_person": Operation(_person),
    "memory_forget_person": Operation(_forget_person),
    "memory_stats": Operation(_stats),
    "memory_export": Operation(_export, is_long=True),
    "memory_rebuild": Operation(_rebuild, is_long=True),
    "memory_maintain": Operation(_maintain, is_long=True),
    "memory_import": Operation(_import, is_long=True, takes_file=True),
}


async def _telling(send: Send, work: Callable[[Callable[[Any], None]], Awaitable[T]]) -> T:
    """Do long work, and say now and then how far it is; the newest word counts, older ones are dropped."""
    latest: list[Any] = []
    result: list[T] = []
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def tell() -> None:
            while True:
                await trio.sleep(PROGRESS_S)
                if latest:
                    try:
                        await send("progress", **asdict(latest.pop()))
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        return  # whoever asked has left, which ends the work elsewhere
                    latest.clear()

        nursery.start_soon(tell)
        try:
            result.append(await work(latest.append))
        except Exception as error:  # out of the nursery as itself, not in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result[0]


@asynccontextmanager
async def spooled(stream: trio.SocketStream, request: JsonObject, rest: bytes, folder: Path) -> AsyncIterator[BinaryIO]:
    """The bytes that follow a request, in a file without a name.

    Errors: RefusedError when they do not all come, or cannot be kept.
    """
    size = request.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_FILE:
        raise RefusedError(f"'size' must be a number of bytes up to {MAX_FILE}")
    try:
        file: BinaryIO = await trio.to_thread.run_sync(_unnamed_file, folder)
    except OSError as error:
        raise RefusedError(
            f"cannot write to {str(folder)!r} ({error.strerror}); make room or make it writable"
        ) from error
    try:
        chunk = rest[:size]
        while True:
            await trio.to_thread.run_sync(file.write, chunk)
            if (missing := size - file.tell()) <= 0:
                break
            with trio.move_on_after(SILENCE_S):
                chunk = bytes(await stream.receive_some(min(missing, 1 << 20)))
                if chunk:
                    continue
            raise RefusedError(f"only {file.tell()} of {size} bytes arrived; nothing was done")
        await trio.to_thread.run_sync(file.seek, 0)
        yield file
    except OSError as error:
        raise RefusedError(
            f"cannot write to {str(folder)!r} ({error.strerror}); make room or make it writable"
        ) from error
    finally:
        file.close()


def _unnamed_file(folder: Path) -> BinaryIO:
    return TemporaryFile(dir=folder)


def hit_object(hit: Hit) -> dict[str, Any]:
    """A found memory, as clients get it."""
    return {
        **memory_object(hit.memory),
        "rank": hit.rank,
        "score": hit.score,
        "found_by": list(hit.legs),
        "why": hit.why,
    }


def seen_object(seen: Seen) -> dict[str, Any]:
    """A memory with all that its owner may want to know, as clients get it."""
    return {
        **memory_object(seen.memory),
        "base_importance": seen.base_importance,
        "centrality": seen.centrality,
        "forgotten": seen.forgotten,
        "forget_reason": seen.forget_reason,
    }


def memory_object(memory: Memory) -> dict[str, Any]:
    """A memory, as clients get it."""
    values = asdict(memory)
    for name in ("created_at", "updated_at", "last_accessed_at"):
        values[name] = to_text(values[name])
    return {**values, "memory_type": str(memory.memory_type)}


def _text(request: JsonObject, name: str, default: str | None = None) -> str:
    value = request.get(name, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise RefusedError(f"{name!r} must be given as text")
    return value


def _number(request: JsonObject, name: str, default: int, most: int) -> int:
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RefusedError(f"{name!r} must be a whole number from 1 to {most}")
    return value


def _choice(request: JsonObject, name: str, kind: type[E]) -> E | None:
    value = request.get(name)
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(kind)
        raise RefusedError(f"{name} {str(value)[:80]!r} is unknown; known are: {known}") from error


async def run_on_closed(
    command: str,
    agent_id: str,
    paths: AgentPaths,
    log_folder: Path,
    policy: MaintenancePolicy,
    request: JsonObject,
    send: Send,
    file: BinaryIO | None,
) -> None:
    """Do one operation on the store of an agent that does not run; the caller holds the instance's lock.

    Errors: SpacebotError.
    """
    failure: Exception | None = None
    async with open_desk(
        AgentId(agent_id), paths, OnnxEmbedder(verdicts=paths.root / "native.json"), log_folder, policy
    ) as desk:
        try:
            await OPERATIONS[command].run(desk, request, send, file)
        except Exception as error:  # out of the nursery as itself, not in a group
            failure = error
    if failure is not None:
        raise failure
