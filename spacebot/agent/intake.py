"""Which files of the drop folder are due, and what each is: its text, its identity, or why it has none.

Flow:   Watch.look -> Found that is settled and due -> identify -> Document (text and hash, or a refusal)
Floor:  agent
Source: memory spec 13.2, 13.3 and its pitfalls P-13, P-39
"""

import hashlib
import logging
import math
from dataclasses import dataclass

import trio

from spacebot.agent.documents import KINDS, MAX_BYTES, TEXT_KINDS, kind_of, read_text
from spacebot.agent.drop_folder import DropFolder, Found, Listing, Stamp, reason_name
from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.errors import (
    BudgetExceededError,
    ContextOverflowError,
    ExternalError,
    ModelBusyError,
    ModelRejectedError,
    RefusedError,
    SpacebotError,
)
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import clean_unicode

log = logging.getLogger(__name__)

SETTLED_S = 2.0  # a file that was written to more recently may still be growing; memory spec 13.2
EMPTY_S = 60.0  # an empty file is often one that is about to be filled
RETRY_FIRST_S, RETRY_MOST_S = 60.0, 3600.0  # doubled after each failure; memory spec 13.3
UNFIT = (400, 413, 422)  # what a provider answers to a request that is itself the trouble
TOO_LARGE = f"larger than {MAX_BYTES // 2**20} MiB; split it into smaller files"


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was looked at.

    Args:
        content_hash: SHA-256 of the text; of the bytes, or of name, size and time, where there is none.
        text: empty when nothing is written in it.
        refusal: why it can never be read as it is.
    """

    found: Found
    content_hash: str
    text: str = ""
    refusal: str | None = None

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to read and nothing wrong."""
        return not self.text and self.refusal is None


class HeldUpError(Exception):
    """Something went wrong that no document could help; it is tried again later.

    `is_general` tells that other documents would fare no better.
    """

    def __init__(self, error: SpacebotError) -> None:
        super().__init__(scrub(str(error)))
        is_unfit = isinstance(error, ModelRejectedError) and error.status_code in UNFIT
        self.is_general = not (is_unfit or isinstance(error, ContextOverflowError))
        self.retry_after_s = error.retry_after_s if isinstance(error, ModelBusyError | BudgetExceededError) else None


async def identify(folder: DropFolder, found: Found) -> Document | None:
    """Read a file and tell what it is; None when it changed or vanished meanwhile.

    Errors: OSError when it cannot be read; HeldUpError when documents cannot be read at all.
    """
    if found.stamp.size > MAX_BYTES:
        return unread(found, TOO_LARGE)
    data = await trio.to_thread.run_sync(folder.read, found, MAX_BYTES)
    if data is None:
        return None
    if not data:
        return Document(found, _hash(b""))
    try:
        text = await read_text(found.name, data)
    except RefusedError as error:
        return Document(found, await trio.to_thread.run_sync(_hash, data), refusal=str(error))
    except ExternalError as error:
        raise HeldUpError(error) from error
    text = text if text.strip() else ""
    return Document(found, await hash_text(text), text)


def unread(found: Found, reason: str) -> Document:
    """A document that is known by its file alone."""
    stamp = f"{found.shown}\0{found.stamp.size}\0{found.stamp.mtime_ns}"
    return Document(found, _hash(stamp.encode()), refusal=reason)


async def check_upload(name: str, data: bytes) -> str | None:
    """Refuse an upload that could never be read; gives a text's hash, and None of what is parsed later.

    Errors: RefusedError; ExternalError.
    """
    kind = kind_of(name)
    if kind not in KINDS:
        raise RefusedError(f"{name!r} is of a kind that cannot be read; use one of: {', '.join(sorted(KINDS))[2:]}")
    if len(data) > MAX_BYTES:
        raise RefusedError(f"{name!r} is {TOO_LARGE}")
    if kind not in TEXT_KINDS:
        return None
    try:
        text = await read_text(name, data)
    except RefusedError as error:
        raise RefusedError(f"{name!r} is refused: {error}") from error
    return await hash_text(text if text.strip() else "")


async def hash_text(text: str) -> str:
    """The identity of a text."""
    return await trio.to_thread.run_sync(_hash, text.encode())


def retry_after(attempts: int) -> float:
    """Seconds until the next try after so many failures."""
    return min(RETRY_FIRST_S * 2.0 ** min(attempts - 1, 16), RETRY_MOST_S)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(slots=True)
class _Seen:
    """What is known of a file, so that it is not read again at each look."""

    stamp: Stamp
    due: float = math.inf  # monotonic seconds
    is_quarantined: bool = False
    content_hash: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look into the folder.

    Args:
        due: files to be read now, oldest first.
        pause_s: seconds until something else may be due, if nothing changes.
        present: the names of all files, when some of those known before are gone.
    """

    due: list[Found]
    pause_s: float
    present: frozenset[str] | None = None


class Watch:
    """Remembers what was seen in the folder; a look that finds nothing new reads no file."""

    def __init__(self, folder: DropFolder, clock: Clock, agent_id: str) -> None:
        self._folder = folder
        self._clock = clock
        self._agent_id = agent_id
        self._seen: dict[str, _Seen] = {}
        self._last: dict[str, tuple[Stamp, float]] = {}  # and since when it looks like that, in monotonic seconds
        self._unexplained: set[str] = set()
        self._warned: set[tuple[str, str]] = set()
        self._is_first = True

    @property
    def waiting(self) -> int:
        """Files that are in the folder and not done."""
        return len(self._last)

    async def look(self) -> Look:
        """See which files are settled and due. A folder that cannot be read is reported once, and counts as empty."""
        try:
            listing = await trio.to_thread.run_sync(self._folder.scan)
        except OSError as error:
            self.warn(str(self._folder.path), f"the drop folder cannot be read: {error.strerror}")
            return Look(due=[], pause_s=math.inf)
        self._report(listing)
        gone = self._last.keys() - listing.names
        for name in self._seen.keys() - listing.names:
            del self._seen[name]
        due, pause = self._choose(listing)
        present = frozenset(map(clean_unicode, listing.names)) if gone or self._is_first else None
        self._is_first = False
        return Look(due=due, pause_s=pause, present=present)

    def _choose(self, listing: Listing) -> tuple[list[Found], float]:
        now, wall = monotonic_s(), self._clock.now().timestamp()
        due: list[Found] = []
        pause, before, self._last = math.inf, self._last, {}
        for found in listing.files:
            seen = self._seen.get(found.name)
            stamp, since = before.get(found.name, (None, now))
            since = since if stamp == found.stamp else now
            self._last[found.name] = (found.stamp, since)
            if seen is not None and seen.stamp == found.stamp:
                is_freed = seen.is_quarantined and not self._is_explained(found, listing.reasons)
                if is_freed or seen.due <= now:
                    due.append(found)
                else:
                    pause = min(pause, seen.due - now)
            elif now - since >= SETTLED_S or wall - found.mtime_s >= SETTLED_S:
                due.append(found)
            else:
                pause = min(pause, since + SETTLED_S - now)
        return due, pause

    def _is_explained(self, found: Found, reasons: set[str]) -> bool:
        return found.name in self._unexplained or reason_name(found.name) in reasons

    async def is_set_aside(self, found: Found) -> bool:
        """Whether the word that a file is in quarantine still stands: its owner did not take the reason away."""
        return found.name in self._unexplained or await trio.to_thread.run_sync(self._folder.has_reason, found)

    def may_be_filled(self, found: Found) -> bool:
        """Whether an empty file should get some more time."""
        seen = self._seen.get(found.name)
        if seen is not None and seen.stamp == found.stamp:
            return seen.due > monotonic_s()
        self._seen[found.name] = _Seen(found.stamp, due=monotonic_s() + EMPTY_S)
        return True

    def note(self, document: Document, wait_s: float, *, is_quarantined: bool = False) -> None:
        """Leave a file alone for so many seconds, or until it changes."""
        self._seen[document.found.name] = _Seen(
            document.found.stamp, monotonic_s() + wait_s, is_quarantined, document.content_hash
        )

    def note_unexplained(self, found: Found, is_unexplained: bool) -> None:
        """Remember whether the reason of a file that was set aside could not be written."""
        (self._unexplained.add if is_unexplained else self._unexplained.discard)(found.name)

    def settle(self, found: Found) -> None:
        """A file is whole: we wrote it."""
        self._last[found.name] = (found.stamp, -math.inf)

    def done(self, found: Found) -> None:
        """A file is gone, and that is right."""
        self._seen.pop(found.name, None)
        self._last.pop(found.name, None)

    def hash_of(self, found: Found) -> str | None:
        """The identity of a file, if it was read as it is."""
        seen = self._seen.get(found.name)
        return seen.content_hash if seen is not None and seen.stamp == found.stamp else None

    def warn(self, name: str, why: str) -> None:
        """Say it once for each file."""
        if (name, why) not in self._warned:
            self._warned.add((name, why))
            log.warning("file in the drop folder is left alone", extra=kv(agent=self._agent_id, file=name, reason=why))

    def _report(self, listing: Listing) -> None:
        for name, why in listing.skipped.items():
            self.warn(name, why)
        here = listing.names | listing.skipped.keys()
        self._warned = {(name, why) for name, why in self._warned if name in here}
