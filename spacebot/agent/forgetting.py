"""Forget everything about a person: rows, vectors, summaries, quotes, log lines; an audit line stays, without a word.

What goes, for a person `platform:user`:

    their conversations alone with the agent   all of it, what the agent said included; the numbering goes on
    what they said elsewhere                    the rows stay as "(erased)", so that numbers and the ledger hold; with
                                                them the replies of the turns that took them, what those turns set to
                                                work, what others quoted to answer it, summaries that cover it
    files                                       that came with their messages; log files of workers where they spoke
    what models saw                             all of it, since any prompt may have named them
    memories                                    learned from them, about them, private to them; made from those by the
                                                cortex; each with its vector and edges, and the bulletins made of them

It happens in steps that may each be repeated: a note of the job is written first and removed last, so that a program
that died is told to finish. The bytes go too: deleted rows are overwritten, the full-text index is merged, the file is
written anew, the log is shortened, the vector table is made again.

Fills the seam `ForgetDesk` of the tool with which people ask for it in a chat.

Flow:    Forgetting.forget_person -> conversations let go -> rows -> memories -> audit line -> bytes
Floor:   agent
Source:  memory spec pitfall P-06, P-33; SQLite documentation of secure_delete, VACUUM and FTS5 'merge'
"""

import json
import logging
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from spacebot.agent.profile import DIGEST_KEY
from spacebot.base.clock import Clock
from spacebot.base.errors import StorageError
from spacebot.base.ids import MemoryId, MessageId
from spacebot.base.log_file import LogFile
from spacebot.base.telemetry import kv, log_ring
from spacebot.conversations.erasure import WORDS, Person, Scope, erase_log, run_for, scope_of
from spacebot.memory.curation_log import note
from spacebot.memory.memory import AgentMemory
from spacebot.storage.database import Connection, Database
from spacebot.storage.settings import write_settings
from spacebot.tools.forgetting import Confirmations

log = logging.getLogger(__name__)

BATCH = 200  # memories erased in one transaction
MERGE_PAGES = 500  # of the full-text index in one transaction
MERGES = 10_000  # transactions; an index that is not done by then grows as fast as it is merged
SCHEDULED = 100  # people who wait to be erased; further ones wait for the next start
TELLING_S = 300.0  # how long an erasure waits for its announcement to be made
TOLD_POLL_S = 1.0
BY_THEMSELVES = "asked for by the person"
JOB = "forgetting:"  # settings key: a person whose erasure is not finished
DUE = "erasure_cleaning_due"  # settings key: rows are gone, their bytes may not be
NAME = 3  # characters of a name that is looked for in texts
# An id that this program made, or that of a conversation as JSON holds it.
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(?<=\")[^\s\"\\]+:[^\s\"\\]+(?=\")")

LetGo = Callable[[Collection[str]], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """How much there is of a person."""

    person: str
    memories: int
    messages: int
    conversations: int  # alone with the agent
    rooms: int  # with others

    @staticmethod
    def check(text: str) -> str:
        """A person's key, as it must be written. Errors: RefusedError."""
        return Person.parse(text).key


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenPerson:
    """What was erased."""

    person: str
    memories: int
    associations: int
    messages: int
    replies: int
    runs: int  # of branches and workers
    summaries: int
    events: int  # of the curation log
    log_lines: int
    console_mentions: int  # lines of the owner's own console chat that name them; those stay


class Forgetting:
    """Erases people; one instance per agent."""

    def __init__(
        self,
        database: Database,
        memory: AgentMemory,
        clock: Clock,
        *,
        vectors: Path,
        let_go: LetGo | None = None,
        log_folder: Path | None = None,
    ) -> None:
        """Take what holds traces.

        Args:
            vectors: folder of the vector table.
            let_go: while its block runs, these conversations are not in anybody's memory; None: they never are.
            log_folder: of the program's log files.
        """
        self._database = database
        self._memory = memory
        self._clock = clock
        self._vectors = vectors
        self.let_go = let_go or _nothing_to_let_go
        self.drop_files: Callable[[Collection[MessageId]], Awaitable[None]] = _no_files  # those that came with messages
        self.drop_worker_files: Callable[[Collection[str]], Awaitable[None]] = _no_worker_files
        self.drop_captures: Callable[[], Awaitable[None]] = _no_captures  # what models saw
        self.confirmations = Confirmations()
        self._log_folder = log_folder
        self._turn = trio.Lock()  # one person after the other
        self._send, self._scheduled = trio.open_memory_channel[tuple[Person, str]](SCHEDULED)

    async def traces_of(self, person: str) -> Traces:
        """How much there is of a person (platform:user). Errors: RefusedError, StorageError."""
        who = Person.parse(person)

        def read(c: Connection) -> Traces:
            scope = scope_of(c, who)
            (alone,) = c.execute(
                "SELECT count(*) FROM conversation_messages WHERE role = 'user' "
                "AND channel_id IN (SELECT value FROM json_each(?))",
                (json.dumps(scope.own),),
            ).fetchone()
            return Traces(
                person=who.key,
                memories=len(_memories_of(c, who, scope)),
                messages=alone + len(scope.messages),
                conversations=len(scope.own),
                rooms=len(scope.rooms),
            )

        return await self._database.read(read)

    async def forget_person(self, person: str, *, reason: str) -> ForgottenPerson:
        """Erase everything of a person (platform:user). Doing it again changes nothing.

        Args:
            reason: who asked for it, in the program's own words: it goes into the audit line.

        Errors: RefusedError when it names nobody; StorageError, then it is finished at the next start.
        Cancel: rows go as a whole; the bytes that they leave are cleaned away by the next start.
        """
        who = Person.parse(person)
        async with self._turn:
            with trio.CancelScope(shield=True):
                await self._database.write(lambda c: write_settings(c, **{JOB + who.mark: f"{who.key}\n{reason}"}))
                done = await self._erase(who, reason)
            await self._clean()
        log.info("person forgotten", extra=kv(memories=done.memories, messages=done.messages))
        return done

    async def run(self) -> None:
        """Finish what the last life of the program began, then erase who is scheduled. Never returns."""
        try:
            await self._finish_old()
        except StorageError as error:
            log.error("erasure not finished, the next start tries again", extra=kv(error=str(error)))
        while True:
            who, process_id = await self._scheduled.receive()
            with trio.move_on_after(TELLING_S):
                while not await self._database.read(partial(_is_told, process_id=process_id)):  # noqa: ASYNC110
                    await trio.sleep(TOLD_POLL_S)  # rows are what tells
            try:
                await self.forget_person(who.key, reason=BY_THEMSELVES)
            except StorageError as error:
                log.error("erasure not finished, the next start tries again", extra=kv(error=str(error)))

    async def message_text(self, message_id: str, channel_id: str, user_id: str) -> str | None:
        """What a person wrote in a message; None when the log has no such message of theirs."""

        def read(c: Connection) -> str | None:
            row = c.execute(
                "SELECT content FROM conversation_messages WHERE id = ? AND channel_id = ? AND sender_id = ? "
                "AND role = 'user' AND kind = 'text'",
                (message_id, channel_id, user_id),
            ).fetchone()
            return None if row is None else str(row["content"])

        return await self._database.read(read)

    async def amount_of(self, person: str) -> str:
        """In words, how much there is of a person (platform:user). Errors: StorageError."""
        traces = await self.traces_of(person)
        return f"{traces.messages} messages and {traces.memories} memories"

    async def schedule(self, person: str, channel_id: str, branch_id: str) -> None:
        """Erase a person once what a branch of this conversation found out has been told.

        From the return on it will happen, whatever becomes of the program. Errors: RefusedError, StorageError.
        """
        who = Person.parse(person)
        await self._database.write(lambda c: write_settings(c, **{JOB + who.mark: f"{who.key}\n{BY_THEMSELVES}"}))
        try:
            self._send.send_nowait((who, branch_id))
        except trio.WouldBlock:
            log.warning("erasure put off to the next start, too many wait")

    async def _finish_old(self) -> None:
        jobs, is_due = await self._database.read(_open_jobs)
        for job in jobs:
            key, _, reason = job.partition("\n")
            log.info("erasure taken up again")
            await self.forget_person(key, reason=reason)
        if is_due and not jobs:
            async with self._turn:
                await self._clean()

    async def _erase(self, who: Person, reason: str) -> ForgottenPerson:
        found = await self._database.read(partial(scope_of, who=who))
        gone: set[str] = set()
        associations = 0
        async with self.let_go([*found.own, *found.rooms]):
            scope = await self._database.read(partial(scope_of, who=who))
            # In this order each step finds what it needs, also when those before it were done in another life: events
            # by the ids of memories, memories by the messages that they were learned from.
            ids = await self._database.read(partial(_memories_of, who=who, scope=scope))
            events = await self._erase_events(who, {*ids, *scope.messages, *scope.own})
            while ids := await self._database.read(partial(_memories_of, who=who, scope=scope)):
                for start in range(0, len(ids), BATCH):
                    part = ids[start : start + BATCH]
                    associations += await self._database.write(partial(_erase_memories, ids=part))
                    await self._memory.refresh(removed=[MemoryId(key) for key in part])
                gone.update(ids)
            said = await self._database.read(partial(_messages_of, who=who))
            await self.drop_files(said)  # while it is known whose they are
            await self.drop_worker_files([*scope.own, *scope.rooms])
            erased = await self._database.write(partial(erase_log, who=who, now=self._clock.text()))
            traces = {*gone, *scope.messages, *scope.own}
            events += await self._erase_events(who, traces)  # what was noted meanwhile
            mentions = await self._database.read(partial(_console_mentions, ids=traces, names=scope.names))
            await self.drop_captures()
        lines = await self._shorten_logs(who, found.own)
        done = ForgottenPerson(
            person=who.key,
            memories=len(gone),
            associations=associations,
            messages=erased["messages"],
            replies=erased["replies"],
            runs=erased["runs"],
            summaries=erased["summaries"],
            events=events,
            log_lines=lines,
            console_mentions=mentions,
        )
        await self._database.write(lambda c: _conclude(c, who, done, reason, self._clock.text()))
        return done

    async def _erase_events(self, who: Person, ids: set[str]) -> int:
        found = await self._database.read(partial(_events_naming, who=who, ids=ids))
        if found or ids:
            await self._database.write(partial(_empty_events, ids=found))
        return len(found)

    async def _clean(self) -> None:
        """Make the bytes of deleted rows go: full text, vector table, database file, its write-ahead log."""
        for table in await self._database.read(_full_text_tables):
            size = -MERGE_PAGES  # negative: begin a merge of everything
            for _ in range(MERGES):
                if not await self._database.write(partial(_merge_words, table=table, size=size)):
                    break
                size = MERGE_PAGES
        await self._database.tidy(_write_anew)
        if await trio.to_thread.run_sync(self._vectors.exists):  # a young store has none yet
            try:
                await self._memory.rebuild()
            except StorageError as error:  # it is derived: without it searches are slower, and nothing else
                log.warning("vector table removed, it could not be made anew", exc_info=error)
                await trio.to_thread.run_sync(partial(shutil.rmtree, self._vectors, ignore_errors=True))
        await self._database.write(lambda c: c.execute("DELETE FROM settings WHERE key = ?", (DUE,)))

    async def _shorten_logs(self, who: Person, own: Sequence[str]) -> int:
        # As the fields of a record are written; a bare id may be as short as a word.
        needles = [repr(who.user), who.key, *own]
        if (ring := log_ring()) is not None:
            ring.drop([who.user, *needles])
        if self._log_folder is None:
            return 0
        return await trio.to_thread.run_sync(_drop_lines, self._log_folder, needles)


@asynccontextmanager
async def _nothing_to_let_go(channels: Collection[str]) -> AsyncIterator[None]:
    yield


def _messages_of(c: Connection, who: Person) -> list[MessageId]:
    """All messages of a person that the log has."""
    rows = c.execute(
        "SELECT m.id FROM conversation_messages m JOIN channels c ON c.id = m.channel_id "
        "WHERE m.sender_id = ? AND c.platform = ?",
        (who.user, who.platform),
    )
    return [MessageId(row["id"]) for row in rows]


async def _no_files(message_ids: Collection[MessageId]) -> None:
    return None


async def _no_worker_files(channels: Collection[str]) -> None:
    return None


async def _no_captures() -> None:
    return None


def _memories_of(c: Connection, who: Person, scope: Scope) -> list[str]:
    """Memories learned from a person, about them, private to them, and what the cortex concluded from those."""
    rows = c.execute(
        "SELECT id FROM memories WHERE subject = :key OR owner = :key "
        "OR (user_id = :user AND (channel_id IS NULL OR substr(channel_id, 1, length(:prefix)) = :prefix)) "
        "OR channel_id IN (SELECT value FROM json_each(:own)) "
        "OR message_id IN (SELECT value FROM json_each(:messages))",
        {
            "key": who.key,
            "user": who.user,
            "prefix": f"{who.platform}:",
            "own": json.dumps(scope.own),
            "messages": json.dumps(scope.messages),
        },
    )
    ids = {row["id"] for row in rows}
    concluded = c.execute(
        "SELECT DISTINCT a.source_id FROM associations a JOIN memories m ON m.id = a.source_id "
        "WHERE m.source = 'cortex' AND a.origin = 'llm' AND a.target_id IN (SELECT value FROM json_each(?))",
        (json.dumps(sorted(ids)),),
    )
    return sorted(ids | {row["source_id"] for row in concluded})


def _erase_memories(c: Connection, ids: Sequence[str]) -> int:
    """Delete memories; vectors and edges go with them. Returns the number of edges."""
    values = {"ids": json.dumps(list(ids))}
    edges = run_for(c, "DELETE FROM associations WHERE source_id IN {ids} OR target_id IN {ids}", values)
    run_for(c, "DELETE FROM memories WHERE id IN {ids}", values)
    return edges


def _events_naming(c: Connection, who: Person, ids: set[str]) -> list[str]:
    """Lines of the curation log that name a person or something of theirs, bulletins included."""
    found = []
    for row in c.execute("SELECT id, summary, details FROM cortex_events WHERE summary <> ?", (WORDS,)):
        text = f"{row['summary']} {row['details'] or ''}"
        if who.key in text or not ids.isdisjoint(_ID.findall(text)):
            found.append(row["id"])
    return found


def _empty_events(c: Connection, ids: Sequence[str]) -> None:
    """Take the words out of these lines; that something happened stays. The agent's card is made anew as well."""
    c.executemany("UPDATE cortex_events SET summary = ?, details = NULL WHERE id = ?", [(WORDS, key) for key in ids])
    c.execute("UPDATE agent_profile SET status = NULL, bio = NULL")
    c.execute("DELETE FROM settings WHERE key = ?", (DIGEST_KEY,))


def _console_mentions(c: Connection, ids: set[str], names: Sequence[str]) -> int:
    """Lines of the console chat that name something erased. They are the owner's own words and stay."""
    words = [name.casefold() for name in names if len(name) >= NAME]
    count = 0
    for row in c.execute("SELECT content, tool_calls FROM cortex_chat_messages"):
        text = f"{row['content']} {row['tool_calls'] or ''}"
        count += not ids.isdisjoint(_ID.findall(text)) or any(word in text.casefold() for word in words)
    return count


def _conclude(c: Connection, who: Person, done: ForgottenPerson, reason: str, now: str) -> None:
    """Write the audit line, and that what is left to do is cleaning."""
    counts = {
        name: getattr(done, name)
        for name in ("memories", "associations", "messages", "replies", "runs", "summaries", "events", "log_lines")
    }
    note(c, now, "person_forgotten", f"everything about one person was erased, {reason}", person=who.mark, **counts)
    c.execute("DELETE FROM settings WHERE key = ?", (JOB + who.mark,))
    write_settings(c, **{DUE: now})


def _open_jobs(c: Connection) -> tuple[list[str], bool]:
    rows = c.execute("SELECT key, value FROM settings WHERE key = ? OR substr(key, 1, ?) = ?", (DUE, len(JOB), JOB))
    found = {row["key"]: str(row["value"]) for row in rows}
    is_due = found.pop(DUE, None) is not None
    return list(found.values()), is_due


def _is_told(c: Connection, process_id: str) -> bool:
    """Whether people heard what a branch came to, or never will."""
    (is_open,) = c.execute(
        "SELECT EXISTS (SELECT 1 FROM branch_runs WHERE id = :id AND completed_at IS NULL) "
        "OR EXISTS (SELECT 1 FROM pending_results WHERE process_id = :id AND relayed_at IS NULL)",
        {"id": process_id},
    ).fetchone()
    return not is_open


def _full_text_tables(c: Connection) -> list[str]:
    rows = c.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL TABLE%fts5%'")
    return [row["name"] for row in rows if str(row["name"]).isidentifier()]


def _merge_words(c: Connection, table: str, size: int) -> bool:
    """Merge a part of a full-text index, where deleted words stay otherwise; False when nothing is left to do."""
    before = c.total_changes
    c.execute(f"INSERT INTO {table} ({table}, rank) VALUES ('merge', ?)", (size,))
    return c.total_changes - before >= 2


def _write_anew(c: Connection) -> None:
    """Write the file anew: pages that were split hold copies of rows which deleting does not reach."""
    c.execute("VACUUM")
    c.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _drop_lines(folder: Path, needles: Sequence[str]) -> int:
    """Take lines that name a person out of the log files; returns how many."""
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, LogFile)]
    for handler in handlers:
        handler.acquire()  # nobody writes meanwhile
    try:
        dropped = 0
        for path in sorted(folder.glob("spacebot.*")):
            records = _records(path)
            kept = [record for record in records if not any(needle in record for needle in needles)]
            if count := len(records) - len(kept):
                with path.open("r+", encoding="utf-8", errors="surrogateescape") as file:  # the same file: it is open
                    file.write("".join(kept))
                    file.truncate()
                dropped += count
        return dropped
    finally:
        for handler in handlers:
            handler.release()


def _records(path: Path) -> list[str]:
    """The records of a log file; a traceback belongs to the line above it."""
    records: list[str] = []
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if records and not re.match(r"\d{4}-\d\d-\d\dT", line):
                records[-1] += line
            else:
                records.append(line)
    return records
