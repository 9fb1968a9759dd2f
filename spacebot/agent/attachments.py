"""Files that people send: fetched when a turn needs them, kept for workers, and told to the model.

Pictures are shown, texts and recordings are read, everything else is named with the place where it lies. What a file is
decides its content, not its name. Nothing that goes wrong with a file ends the turn: the model reads a line about it.

Flow:   describe -> rows of an earlier attempt | locate -> Fetcher -> private folder -> kept in the workspace -> parts
Floor:  agent
Source: messaging spec 13 and 19 (14, 15, 30, 39, l); process spec 4.7
"""

import logging
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from spacebot.agent.attachment_parts import (
    FOLDER,
    PRIVATE,
    Item,
    free_names,
    is_audio,
    is_shown,
    limit_pictures,
    media_type_of,
    merged,
    note_of,
    parts_of,
    private_folder,
    safe_name,
)
from spacebot.agent.prompts import Prompts
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import DeliveryError, ExternalError, ModelError, RefusedError, StorageError, ToolError
from spacebot.base.fetch import Fetcher
from spacebot.base.ids import ConversationId, MessageId
from spacebot.base.paths import AgentPaths
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import preview
from spacebot.conversations.attachment_log import AttachmentLog, KeptFile
from spacebot.conversations.records import Journalled
from spacebot.llm.messages import Part
from spacebot.messaging.adapter import Location
from spacebot.messaging.courier import Courier
from spacebot.tools.paths_policy import Place, open_file, open_folder

log = logging.getLogger(__name__)

MAX_FILE = 20 * 2**20  # bytes
MAX_FILES = 10  # of a turn
MAX_TURN = 40 * 2**20  # bytes fetched for a turn
FETCH_S = 60.0  # for all files of a turn
AT_ONCE = 3
MAX_FOLDER = 500 * 2**20  # bytes that the folder may hold
SWEEP_S = 3600.0

Transcribe = Callable[[bytes, str], Awaitable[str]]


class Hearing(Protocol):
    """A model that turns recordings into words."""

    async def transcribe(self, audio: bytes, media_type: str, *, instruction: str) -> str:
        """The words of a recording. Errors: ModelError."""
        ...


def transcribe_with(model: Hearing, prompts: Prompts) -> Transcribe:
    """How the desk asks a model for the words of a recording."""

    async def transcribe(audio: bytes, media_type: str) -> str:
        return await model.transcribe(audio, media_type, instruction=prompts.render("fragments/transcribe"))

    return transcribe


@dataclass(frozen=True, slots=True)
class Described:
    """The files of a turn's messages.

    Args:
        parts: for the model, before the words of the turn; empty when nothing was attached.
        notes: a line for each file, for the history: what it was, where it lies, the words of a recording.
    """

    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Budget:
    """Bytes that a turn may still fetch; those in use by running fetches may come back."""

    left: int = MAX_TURN
    running: int = 0
    changed: trio.Event = field(default_factory=trio.Event)

    async def reserve(self, wanted: int) -> int:
        """Take bytes; waits for running fetches to give theirs back before it takes less than wanted."""
        while self.left < wanted and self.running:
            await self.changed.wait()
        granted = min(self.left, wanted)
        self.left -= granted
        self.running += 1
        return granted

    def settle(self, granted: int, used: int) -> None:
        """Give back what was not used."""
        self.left += granted - used
        self.running -= 1
        self.changed.set()
        self.changed = trio.Event()


class AttachmentDesk:
    """One agent's desk for files; a turn calls `describe` right before it asks the model.

    Args:
        transcribe: turns a recording and its media type into words (ModelError when it cannot); None: nobody hears.
    """

    def __init__(
        self, paths: AgentPaths, rows: AttachmentLog, fetcher: Fetcher, *, transcribe: Transcribe | None = None
    ) -> None:
        self._workspace = paths.workspace
        self._incoming = paths.data / "incoming"  # out of the reach of workers until a file is whole
        self._rows = rows
        self._fetcher = fetcher
        self._transcribe = transcribe
        self._swept_at = float("-inf")
        self._is_clean = False

    async def describe(self, messages: Sequence[Journalled], courier: Courier) -> Described:
        """Fetch and read what is attached to messages; files of an earlier attempt are not fetched again.

        Errors: StorageError of the database alone; a file that cannot be had becomes a line that says so.
        Cancel: what was fetched whole is kept.
        """
        items = [
            Item(journalled.id, position, attachment, journalled.message.adapter_key, await self._folder_of(journalled))
            for journalled in messages
            for position, attachment in enumerate(journalled.message.attachments)
        ]
        if not items:
            return Described()
        known = {(row.message_id, row.position): row for row in await self._rows.of({i.message_id for i in items})}
        await self._sweep()
        await self._gather(items, known, courier)
        limit_pictures(items)
        parts: list[Part] = []
        for item in items:
            parts += await trio.to_thread.run_sync(parts_of, item)
        return Described(merged(parts), tuple(note_of(item) for item in items))

    async def forget(self, message_ids: Collection[MessageId]) -> None:
        """Remove the files of messages that are erased, and what is known of them."""
        names = await self._rows.drop(message_ids)
        await trio.to_thread.run_sync(self._remove, names)

    async def is_open_to(self, channel_id: ConversationId, parts: tuple[str, ...]) -> bool:
        """Whether a file of the workspace (as parts of its path) did not come in a direct chat other than this one."""
        if FOLDER not in parts[:-1]:
            return True
        below = parts[len(parts) - parts[::-1].index(FOLDER) :]
        return await self._rows.is_open_to(channel_id, "/".join(below))

    def folder_of(self, channel_id: ConversationId) -> Path:
        """Where the files of a conversation lie that nobody else may see; it need not exist."""
        return self._workspace / FOLDER / private_folder(channel_id)

    async def put_away(self) -> None:
        """Move files of direct chats that lie where every worker looks: of an earlier version, or of a conversation
        that was a shared one when they came. Errors: StorageError."""
        for saved_name, channel_id in await self._rows.exposed(PRIVATE):
            moved = await trio.to_thread.run_sync(self._move, saved_name, private_folder(channel_id))
            if moved is not None:
                await self._rows.rename(saved_name, moved)

    async def _folder_of(self, journalled: Journalled) -> str:
        channel_id = journalled.message.conversation_id
        if not journalled.message.attachments:
            return ""
        is_private = journalled.message.is_direct or await self._rows.is_private(channel_id)
        return private_folder(channel_id) if is_private else ""

    # Fetching

    async def _gather(
        self, items: Sequence[Item], known: Mapping[tuple[MessageId, int], KeptFile], courier: Courier
    ) -> None:
        budget, limiter = _Budget(), trio.CapacityLimiter(AT_ONCE)
        deadline = trio.current_time() + FETCH_S
        fetched = 0
        failures: list[StorageError] = []

        async def guarded(work: Callable[[], Awaitable[None]]) -> None:
            try:
                await work()
            except StorageError as error:
                failures.append(error)  # raised below, without a group around it

        async with trio.open_nursery() as nursery:
            for item in items:
                row = known.get((item.message_id, item.position))
                if row is not None and await self._take_up(item, row):
                    continue
                fetched += 1
                if fetched > MAX_FILES:
                    item.trouble = f"could not be fetched: more than {MAX_FILES} files at once"
                    continue
                nursery.start_soon(guarded, partial(self._obtain, item, courier, budget, limiter, deadline))
        if self._transcribe is not None:
            async with trio.open_nursery() as nursery:
                for item in items:
                    if item.kept is not None and is_audio(item.kept.media_type) and not item.words:
                        nursery.start_soon(guarded, partial(self._hear, item, limiter))
        if failures:
            raise failures[0]

    async def _take_up(self, item: Item, row: KeptFile) -> bool:
        """Use what an earlier attempt left; False when it has to be fetched again."""
        if row.saved_name is None:
            item.trouble = row.note or "is not kept any more"
            return True
        try:
            item.data = await trio.to_thread.run_sync(self._load, row.saved_name)
        except (ToolError, OSError):
            return False
        item.kept, item.words = row, row.note or ""
        return True

    async def _obtain(
        self, item: Item, courier: Courier, budget: _Budget, limiter: trio.CapacityLimiter, deadline: float
    ) -> None:
        async with limiter:
            announced = item.attachment.size_bytes
            if announced is not None and announced > MAX_FILE:
                await self._refuse(item, f"it is larger than {MAX_FILE // 2**20} MiB")
                return
            # Platforms round sizes, so a little more is allowed than they say.
            granted = await budget.reserve(
                min(announced + announced // 8 + 65_536 if announced else MAX_FILE, MAX_FILE)
            )
            used = 0
            try:
                if granted < (announced or 1):
                    item.trouble = f"could not be fetched: more than {MAX_TURN // 2**20} MiB at once"
                    return
                await self._fetch(item, courier, granted, max(deadline - trio.current_time(), 0.1))
                used = item.kept.size_bytes or 0 if item.kept is not None else 0
            except RefusedError as error:
                if granted < MAX_FILE and not announced:  # another turn has more room
                    item.trouble = f"could not be fetched: {scrub(str(error))}"
                else:
                    await self._refuse(item, str(error))
            except (ExternalError, DeliveryError) as error:
                item.trouble = f"could not be fetched: {_one_line(error)}"
            except (ToolError, OSError) as error:
                log.warning("attachment not kept", extra=kv(reason=_one_line(error)))
                item.trouble = f"could not be kept: {_one_line(error)}"
            finally:
                budget.settle(granted, used)

    async def _refuse(self, item: Item, reason: str) -> None:
        """Note what no other attempt will change."""
        item.trouble = f"could not be fetched: {scrub(reason)}"
        await self._rows.put(
            KeptFile(
                message_id=item.message_id, position=item.position, filename=item.attachment.filename,
                saved_name=None, media_type=item.attachment.media_type, size_bytes=item.attachment.size_bytes,
                note=item.trouble,
            )
        )  # fmt: skip

    async def _fetch(self, item: Item, courier: Courier, max_bytes: int, timeout_s: float) -> None:
        location = await _locate(item, courier)
        passing = self._incoming / secrets.token_hex(16)
        await trio.to_thread.run_sync(self._prepare_incoming)
        try:
            fetched = await self._fetcher.download(
                location.url,
                passing,
                headers=location.headers,
                hosts=location.hosts,
                may_be_private=location.may_be_private,
                max_bytes=max_bytes,
                timeout_s=timeout_s,
            )
            with trio.CancelScope(shield=True):  # from here on it takes a moment, and then nobody fetches it again
                item.data = await trio.to_thread.run_sync(passing.read_bytes)
                kind = media_type_of(item.attachment, fetched.media_type, item.data)
                saved = await trio.to_thread.run_sync(
                    self._keep, item.folder, item.attachment.filename, kind, item.data
                )
                item.kept = KeptFile(
                    message_id=item.message_id, position=item.position, filename=item.attachment.filename,
                    saved_name=saved, media_type=kind, size_bytes=len(item.data),
                )  # fmt: skip
                await self._rows.put(item.kept)
                if not is_shown(kind, item.attachment.filename):
                    item.data = b""
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_remove_quietly, passing)

    async def _hear(self, item: Item, limiter: trio.CapacityLimiter) -> None:
        """Get a recording's words, and keep them with it."""
        kept = item.kept
        assert kept is not None
        assert self._transcribe is not None
        try:
            async with limiter:
                item.words = scrub((await self._transcribe(item.data, kept.media_type)).strip())
        except ModelError as error:
            item.trouble = f"could not be understood: {_one_line(error)}"
            return
        if not item.words:
            item.trouble = "holds no words that could be understood"
            return
        await self._rows.put(
            KeptFile(
                message_id=kept.message_id, position=kept.position, filename=kept.filename, saved_name=kept.saved_name,
                media_type=kept.media_type, size_bytes=kept.size_bytes, note=item.words,
            )
        )  # fmt: skip

    # The folder in the workspace. Workers write there too, so no step follows a link.

    def _place(self, *parts: str) -> Place:
        return Place(self._workspace, (FOLDER, *parts), "/".join((FOLDER, *parts)))

    def _prepare_incoming(self) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._is_clean:  # what a killed program left behind
            self._is_clean = True
            for path in self._incoming.iterdir():
                _remove_quietly(path)

    def _keep(self, below: str, filename: str, media_type: str, data: bytes) -> str:
        """Write a file under a name that is free; returns its path below the folder. Errors: ToolError, OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open_folder(self._place(*_steps(below)), create=True) as folder:
            for name in free_names(safe_name(filename, media_type)):
                try:
                    descriptor = os.open(name, flags, 0o644, dir_fd=folder)
                except FileExistsError:
                    continue
                try:
                    with open(descriptor, "wb") as file:
                        file.write(data)
                except OSError:
                    with suppress(OSError):
                        os.unlink(name, dir_fd=folder)
                    raise
                return "/".join((*_steps(below), name))
        raise AssertionError("names do not end")

    def _load(self, saved_name: str) -> bytes:
        with open_file(self._place(*_steps(saved_name))) as descriptor, open(os.dup(descriptor), "rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise ToolError("it has grown")
        return data

    def _remove(self, names: Collection[str]) -> None:
        for saved_name in names:
            *above, name = _steps(saved_name)
            with suppress(ToolError, OSError), open_folder(self._place(*above)) as folder:
                os.unlink(name, dir_fd=folder)

    def _move(self, saved_name: str, below: str) -> str | None:
        """Put a kept file into a private folder; returns its new path, None when it is not there any more."""
        *above, name = _steps(saved_name)
        with (
            suppress(ToolError, OSError),
            open_folder(self._place(*above)) as source,
            open_folder(self._place(*_steps(below)), create=True) as target,
        ):
            taken = set(os.listdir(target))
            free = next(candidate for candidate in free_names(name) if candidate not in taken)
            os.rename(name, free, src_dir_fd=source, dst_dir_fd=target)
            return f"{below}/{free}"
        return None

    async def _sweep(self) -> None:
        """Once an hour: keep the folder small by removing the oldest files."""
        if monotonic_s() - self._swept_at < SWEEP_S:
            return
        self._swept_at = monotonic_s()
        if removed := await trio.to_thread.run_sync(self._make_room):
            log.info("old attachments removed", extra=kv(files=len(removed)))
            await self._rows.forget_names(removed)

    def _make_room(self) -> list[str]:
        removed: list[str] = []
        with suppress(ToolError, OSError), open_folder(self._place()) as folder:
            found: list[tuple[int, str, int]] = []
            for below, _, names, inner in os.fwalk(".", follow_symlinks=False, dir_fd=folder):
                for name in names:
                    status = os.stat(name, dir_fd=inner, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found.append((status.st_mtime_ns, os.path.normpath(f"{below}/{name}"), status.st_size))
            total = sum(size for _, _, size in found)
            for _, name, size in sorted(found):
                if total <= MAX_FOLDER:
                    break
                os.unlink(name, dir_fd=folder)
                removed.append(name)
                total -= size
        return removed


def _steps(path: str) -> list[str]:
    return [step for step in path.split("/") if step]


async def _locate(item: Item, courier: Courier) -> Location:
    """Errors: DeliveryError."""
    adapter = courier.connected(item.adapter_key)
    if adapter is None:
        raise DeliveryError(f"{item.adapter_key} is not connected", is_permanent=False)
    try:
        return await adapter.locate(item.attachment)
    except DeliveryError:
        raise
    except Exception as error:  # boundary: adapter
        log.error("attachment not located", exc_info=error)
        raise DeliveryError("its address could not be found out", is_permanent=False) from error


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return preview(scrub(text), 300)


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
