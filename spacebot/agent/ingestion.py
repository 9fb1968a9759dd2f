"""Ingestion: documents dropped into a folder become memories.

One document at a time, part by part, each part noted when it is done, so that a crash costs at most one part. What is
the document's fault counts as its attempt, and three of them set it aside with the reason in a file beside it. What
is not (no model answers, the disk is full) only makes ingestion pause. A file is deleted when all of it was read, and
only if it is still the file that was read.

Flow:    poll -> Watch.look -> identify -> known? -> parts -> distil … -> completed -> file deleted
Floor:   agent
Source:  memory spec 13 and its pitfalls P-13, P-14, P-35, P-39; process spec 12
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import trio

from spacebot.agent.chunking import Chunk, fitting_size, split_chunks
from spacebot.agent.distil import Part, distil
from spacebot.agent.drop_folder import DropFolder, Found, upload_name
from spacebot.agent.intake import (
    RETRY_MOST_S,
    SETTLED_S,
    Document,
    HeldUpError,
    Watch,
    check_upload,
    identify,
    retry_after,
    unread,
)
from spacebot.agent.parts import AgentParts
from spacebot.base.clock import from_text, monotonic_s
from spacebot.base.errors import ConfigError, ModelError, NotFoundError, RefusedError, SpacebotError, StorageError
from spacebot.base.events import EventKind
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import preview
from spacebot.base.tree import Node, NodeKind, NodeState, describe
from spacebot.config.model import IngestionConfig
from spacebot.conversations.ingestion_log import IngestedFile, IngestionLog, IngestStatus
from spacebot.llm.messages import ProcessKind

log = logging.getLogger(__name__)

ATTEMPTS = 3  # memory spec 13.3
SLICE_S = 30.0  # a longer pause is cut, so that a changed setting is seen
FAILED_IN_A_ROW = 3  # parts; then the rest of this attempt would only cost money
BATCH = 20  # documents between two looks into the folder
REASON_LENGTH = 500  # characters
NO_MODEL = "the demo model cannot read documents; configure a model, and they are read then"
REASON_TEXT = """\
{name} was set aside and will not be read.

Reason: {reason}
Attempts: {attempts}

To have it tried again, delete this file. To give it up, delete both.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestionState:
    """What ingestion is doing: `disabled`, `idle`, `reading` or `paused`; `reason` says why it pauses."""

    status: str
    folder: str
    waiting: int = 0  # files in the folder that are not done
    filename: str | None = None
    chunk: int = 0  # parts done of the file that is being read
    total: int = 0
    reason: str | None = None


@dataclass(slots=True)
class _Reading:
    """The document that is being read."""

    document: Document
    chunks: list[Chunk]
    done: set[int]
    failures: list[str] = field(default_factory=list)
    saved: int = 0


class Ingestion:
    """The drop folder of one agent; see `run`."""

    def __init__(self, parts: AgentParts, rows: IngestionLog, *, is_demo: Callable[[], bool]) -> None:
        """Take what it works with.

        Args:
            is_demo: whether only the demo model would read; then documents wait for a real one.
        """
        self._parts = parts
        self._rows = rows
        self._is_demo = is_demo
        self._folder = DropFolder(parts.paths.ingest)
        self._watch = Watch(self._folder, parts.clock, parts.id)
        self._wake = trio.Event()
        self._lock = trio.Lock()  # between taking a document up and removing one
        self._reading: _Reading | None = None
        self._pauses = 0
        self._paused_until = 0.0
        self._pause_reason: str | None = None
        self._rejections: dict[str, int] = {}  # how often providers refused a request for this document

    @property
    def settings(self) -> IngestionConfig:
        """The live settings."""
        return self._parts.settings().ingestion

    def state(self) -> IngestionState:
        """What it is doing now."""
        reading, reason = self._reading, None
        status, filename, chunk, total = "idle", None, 0, 0
        if reading is not None:
            status, filename = "reading", reading.document.found.shown
            chunk, total = len(reading.done), len(reading.chunks)
        elif not self.settings.enabled:
            status = "disabled"
        elif self._parts.pause.is_on:
            status, reason = "paused", "the agent is paused"
        elif self._pause_reason is not None:
            status, reason = "paused", self._pause_reason
        return IngestionState(
            status=status,
            folder=str(self._folder.path),
            waiting=self._watch.waiting,
            filename=filename,
            chunk=chunk,
            total=total,
            reason=reason,
        )

    def look(self) -> None:
        """Look into the folder again: the agent is no longer paused."""
        self._wake.set()

    async def files(self) -> list[IngestedFile]:
        """The newest documents first, at most a hundred."""
        return await self._rows.recent()

    async def receive(self, uploads: Sequence[tuple[str, bytes]]) -> list[str]:
        """Put uploads into the folder; returns the names that they got. All are checked before the first is kept.

        Errors: RefusedError (kind, size, binary data); StorageError when the folder cannot be written; ExternalError.
        """
        wanted = [(upload_name(name), data) for name, data in uploads]
        hashes = [await check_upload(name, data) for name, data in wanted]
        names = []
        try:
            for (name, data), content_hash in zip(wanted, hashes, strict=True):
                found = await trio.to_thread.run_sync(self._folder.store, name, data)
                self._watch.settle(found)
                names.append(found.shown)
                if content_hash is not None:
                    await self._rows.queue(content_hash, found.shown, len(data))
        except OSError as error:
            raise StorageError(f"the drop folder {str(self._folder.path)!r} failed: {error.strerror}") from error
        finally:
            self._wake.set()
        return names

    async def forget(self, content_hash: str) -> None:
        """Remove a document: its file if it is still there, its progress, its row. The words are then new again.

        Errors: NotFoundError; RefusedError while it is being read; StorageError.
        """
        async with self._lock:
            row = await self._rows.find(content_hash)
            if row is None:
                raise NotFoundError("there is no such document; GET /api/agents/ingest/files lists them")
            if self._reading is not None and self._reading.document.content_hash == content_hash:
                raise RefusedError(f"{row.filename!r} is being read; wait until it is done, or disable ingestion")
            try:
                await self._remove_file_of(row)
            except OSError as error:
                raise StorageError(f"{row.filename!r} cannot be deleted: {error.strerror}") from error
            except HeldUpError as error:
                raise StorageError(f"{row.filename!r} cannot be looked at: {error}") from error
            await self._rows.remove(content_hash)

    async def run(self, parent: Node) -> None:
        """Look into the folder again and again; never returns. Failures pause it, nothing ends it."""
        node_id = f"ingestion:{self._parts.id}"
        node = self._parts.tree.add(NodeKind.INGESTION, "drop folder", parent=parent, node_id=node_id)
        is_ready = False
        try:
            while True:
                self._wake = trio.Event()
                node.state = NodeState.RUNNING
                try:
                    if not is_ready:
                        await self._rows.recover()
                        await trio.to_thread.run_sync(self._folder.tidy)
                        is_ready = True
                    pause = await self._round(node)
                except Exception as error:  # boundary: process
                    level = logging.WARNING if isinstance(error, SpacebotError | OSError) else logging.ERROR
                    log.log(level, "ingestion failed", exc_info=error, extra=kv(agent=self._parts.id))
                    pause = self._pause(describe(error))
                node.state = NodeState.WAITING
                await self._rest(pause)
        finally:
            self._parts.tree.remove(node)

    async def _rest(self, pause_s: float) -> None:
        """Wait; an upload or a changed setting ends it."""
        settings, until = self.settings, monotonic_s() + pause_s
        while (left := until - monotonic_s()) > 0 and not self._wake.is_set() and self.settings == settings:
            with trio.move_on_after(min(left, SLICE_S)):
                await self._wake.wait()

    async def _round(self, node: Node) -> float:
        """One look into the folder and what follows from it; returns the seconds until the next."""
        interval = self.settings.poll_interval_secs
        if not self.settings.enabled or self._parts.pause.is_on:
            return interval
        if (left := self._paused_until - monotonic_s()) > 0:
            return left
        look = await self._watch.look()
        if look.present is not None:
            await self._rows.note_vanished(look.present)
        if look.due and self._is_demo():
            if self._pause_reason != NO_MODEL:
                log.warning("documents wait", extra=kv(agent=self._parts.id, reason=NO_MODEL))
            self._pause_reason = NO_MODEL
            return interval
        self._pause_reason = None
        for found in look.due[:BATCH]:
            await self._take(found, node)
            if not self.settings.enabled or self._parts.pause.is_on:
                return interval
            if (left := self._paused_until - monotonic_s()) > 0:
                return left
        if len(look.due) > BATCH:
            return 0.0
        return min(interval, look.pause_s, SETTLED_S if look.due else math.inf)

    async def _take(self, found: Found, parent: Node) -> None:
        """Bring one file as far as it goes now."""
        try:
            document = await self._identify(found)
            if document is None:
                return
            async with self._lock:
                self._reading = await self._begin(document)
            if self._reading is not None:
                await self._read(self._reading, parent)
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            await self._failed(self._reading.document if self._reading else unread(found, reason), reason)
        except HeldUpError as error:
            await self._held_up(error)
        finally:
            self._reading = None

    async def _identify(self, found: Found) -> Document | None:
        document = await identify(self._folder, found)
        return None if document is not None and found.stamp.size == 0 and self._watch.may_be_filled(found) else document

    async def _begin(self, document: Document) -> _Reading | None:
        """Decide whether a document is read now, and note that it is; None when that was all."""
        found = document.found
        if not await trio.to_thread.run_sync(self._folder.is_there, found):
            return None
        row = await self._rows.find(document.content_hash)
        if row is not None and row.status is IngestStatus.COMPLETED:
            log.info("document was known already", extra=kv(agent=self._parts.id, file=found.shown))
            await self._finish(document, row.total_chunks)
            return None
        if row is not None and not await self._may_try(document, row):
            return None
        if document.refusal is not None:
            await self._failed(document, document.refusal, is_final=True)
            return None
        if document.is_blank:
            await self._complete(document, 0)
            return None
        window = self._parts.window(ProcessKind.BRANCH)
        size = await trio.to_thread.run_sync(fitting_size, document.text, self.settings.chunk_size, window)
        chunks = await trio.to_thread.run_sync(split_chunks, document.text, size)
        done = await self._rows.begin(
            document.content_hash, found.shown, found.stamp.size, total_chunks=len(chunks), chunk_size=size
        )
        return _Reading(document, chunks, set(done))

    async def _may_try(self, document: Document, row: IngestedFile) -> bool:
        """Whether neither quarantine nor a pause stands in the way."""
        if row.status is IngestStatus.QUARANTINED:
            if await self._watch.is_set_aside(document.found):
                self._watch.note(document, math.inf, is_quarantined=True)
                return False
            await self._rows.rearm(document.content_hash)
        elif row.next_attempt_at is not None:
            wait = (from_text(row.next_attempt_at) - self._parts.clock.now()).total_seconds()
            if wait > 0:
                self._watch.note(document, wait)
                return False
        return True

    async def _read(self, reading: _Reading, parent: Node) -> None:
        """Read all parts that are not done. Errors: OSError, HeldUpError, StorageError."""
        document = reading.document
        node = self._parts.tree.add(NodeKind.INGESTION, document.found.shown, parent=parent)
        node.state = NodeState.RUNNING
        is_through = False
        self._tell(document, IngestStatus.PROCESSING, reading)
        try:
            with node.cancel_scope:
                is_through = await self._read_parts(reading, node)
        finally:
            self._parts.tree.remove(node)
        if node.cancel_scope.cancelled_caught:
            await self._postpone(document, "cancelled", RETRY_MOST_S)
        elif not is_through:
            await self._rows.postpone(document.content_hash, None, None)
        elif reading.failures:
            await self._failed(document, "; ".join(reading.failures))
        else:
            kept = kv(
                agent=self._parts.id, file=document.found.shown, parts=len(reading.chunks), memories=reading.saved
            )
            log.info("document read", extra=kept)
            await self._complete(document, len(reading.chunks))

    async def _read_parts(self, reading: _Reading, node: Node) -> bool:
        """Read the parts; False when the document is to be left, because its owner took it or switched us off."""
        in_a_row = 0
        for index in range(len(reading.chunks)):
            if index in reading.done:
                continue
            if not self.settings.enabled:
                return False
            if not await trio.to_thread.run_sync(self._folder.is_there, reading.document.found):
                return False
            node.progress(f"part {index + 1} of {len(reading.chunks)}")
            failure = await self._read_part(reading, index, node)
            if failure is None:
                in_a_row = 0
                await self._rows.chunk_done(reading.document.content_hash, index)
                reading.done.add(index)
                self._tell(reading.document, IngestStatus.PROCESSING, reading)
                continue
            reading.failures.append(failure)
            in_a_row += 1
            if in_a_row == FAILED_IN_A_ROW:
                break
        return True

    async def _read_part(self, reading: _Reading, index: int, node: Node) -> str | None:
        """Read one part; returns why it has to be read again."""
        chunk, filename = reading.chunks[index], reading.document.found.shown
        if not chunk.text.strip():
            return None
        part = Part(filename=filename, number=index + 1, total=len(reading.chunks), chunk=chunk)
        try:
            distilled = await distil(self._parts, node, part)
        except (ModelError, StorageError, ConfigError) as error:
            raise HeldUpError(error) from error
        except Exception as error:  # boundary: process
            log.error("part of a document failed", exc_info=error, extra=kv(agent=self._parts.id, file=filename))
            return f"part {index + 1}: {describe(error)}"
        self._pauses = 0
        reading.saved += distilled.saved
        return distilled.failure

    async def _complete(self, document: Document, total: int) -> None:
        found = document.found
        self._rejections.pop(document.content_hash, None)
        await self._rows.complete(document.content_hash, found.shown, found.stamp.size, total_chunks=total)
        await self._finish(document, total)

    async def _finish(self, document: Document, total: int) -> None:
        """Delete the file of a completed document, then its progress; never another file of that name."""
        found = document.found
        try:
            is_gone = await trio.to_thread.run_sync(self._folder.remove, found)
            await trio.to_thread.run_sync(self._folder.remove_reason, found)
        except OSError as error:
            self._watch.warn(found.name, f"it was read, but cannot be deleted: {error.strerror}")
            self._watch.note(document, RETRY_MOST_S)
        else:
            if is_gone:
                self._watch.done(found)
            await self._rows.clear_progress(document.content_hash)
        self._reading = None  # whoever hears of it may remove it at once
        self._tell(document, IngestStatus.COMPLETED, chunk=total, total=total)

    async def _failed(self, document: Document, reason: str, *, is_final: bool = False) -> None:
        """Note a failure that is the document's own; the third, or a final one, sets it aside."""
        found, reason = document.found, preview(scrub(reason), REASON_LENGTH)
        row = await self._rows.find(document.content_hash)
        attempts = (row.attempts if row is not None else 0) + 1
        is_final = is_final or attempts >= ATTEMPTS
        wait = math.inf if is_final else retry_after(attempts)
        if is_final:
            await self._explain(found, reason, attempts)
        await self._rows.fail(
            document.content_hash,
            found.shown,
            found.stamp.size,
            reason,
            attempts=attempts,
            next_at=None if is_final else self._parts.clock.now() + timedelta(seconds=wait),
        )
        self._watch.note(document, wait, is_quarantined=is_final)
        log.warning(
            "document set aside" if is_final else "document not read",
            extra=kv(agent=self._parts.id, file=found.shown, reason=reason, attempts=attempts),
        )
        self._tell(document, IngestStatus.QUARANTINED if is_final else IngestStatus.FAILED)

    async def _explain(self, found: Found, reason: str, attempts: int) -> None:
        """Write the reason beside the file, before the row says so: its absence means "try again"."""
        text = REASON_TEXT.format(name=found.shown, reason=reason, attempts=attempts)
        try:
            await trio.to_thread.run_sync(self._folder.write_reason, found, text)
        except OSError as error:
            self._watch.warn(found.name, f"the reason cannot be written beside it: {error.strerror}")
            self._watch.note_unexplained(found, True)
        else:
            self._watch.note_unexplained(found, False)

    async def _held_up(self, error: HeldUpError) -> None:
        """Put the document back; the rest waits too when it would fare no better."""
        document = self._reading.document if self._reading is not None else None
        wait = 0.0
        if document is None or error.is_general:
            self._pause(str(error), error.retry_after_s)
        else:
            count = self._rejections[document.content_hash] = self._rejections.get(document.content_hash, 0) + 1
            wait = retry_after(count)
            log.warning(
                "document put off", extra=kv(agent=self._parts.id, file=document.found.shown, reason=str(error))
            )
        if document is not None:
            await self._postpone(document, str(error), wait)

    async def _postpone(self, document: Document, reason: str, wait_s: float) -> None:
        next_at = self._parts.clock.now() + timedelta(seconds=wait_s) if wait_s else None
        self._watch.note(document, wait_s)
        await self._rows.postpone(document.content_hash, preview(reason, REASON_LENGTH), next_at)
        self._tell(document, IngestStatus.QUEUED)

    def _pause(self, reason: str, at_least_s: float | None = None) -> float:
        self._pauses += 1
        wait = max(retry_after(self._pauses), at_least_s or 0.0)
        self._paused_until = monotonic_s() + wait
        self._pause_reason = reason
        log.warning("ingestion pauses", extra=kv(agent=self._parts.id, reason=reason, seconds=wait))
        return wait

    def _tell(
        self,
        document: Document,
        status: IngestStatus,
        reading: _Reading | None = None,
        *,
        chunk: int = 0,
        total: int = 0,
    ) -> None:
        self._parts.events.emit(
            EventKind.INGESTION_PROGRESS,
            agent_id=self._parts.id,
            filename=document.found.shown,
            content_hash=document.content_hash,
            chunk=chunk if reading is None else len(reading.done),
            total=total if reading is None else len(reading.chunks),
            status=str(status),
        )

    async def _remove_file_of(self, row: IngestedFile) -> None:
        """Delete the file of a row, if a file of that name holds that document."""
        listing = await trio.to_thread.run_sync(self._folder.scan)
        for found in listing.files:
            if found.shown != row.filename:
                continue
            content_hash = self._watch.hash_of(found)
            if content_hash is None:
                document = await identify(self._folder, found)
                content_hash = document.content_hash if document is not None else None
            if content_hash == row.content_hash:
                await trio.to_thread.run_sync(self._folder.remove, found)
                await trio.to_thread.run_sync(self._folder.remove_reason, found)
                self._watch.done(found)
