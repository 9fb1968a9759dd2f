"""The live history of one channel: what its next turn shows the model of the talk so far.

It only grows at the end. Its head is changed by `replace` alone, and only while the entries that are to go still
stand there, so a summary that comes late never covers what it has not read. The log has everything anyway.

    summary, summary, omission, message, message, ...

Floor:  agent
Source: process spec 4.10, 9 and pitfalls P2, P15, P34, P64
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from spacebot.llm.history import estimate_tokens, is_boundary
from spacebot.llm.messages import ModelMessage

KEEP = 2  # entries that no cut touches; process spec 9


class EntryKind(StrEnum):
    """What an entry is."""

    TALK = "talk"
    SUMMARY = "summary"
    OMISSION = "omission"  # says that something is left out; a summary may take its place


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One message to the model and what it stands for.

    `seqs` are numbers of messages in the log: of talk all of them, of the other kinds the first and the last.
    """

    message: ModelMessage
    seqs: tuple[int, ...] = ()
    kind: EntryKind = EntryKind.TALK
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", estimate_tokens((self.message,)))


class LiveHistory:
    """Entries in order; see above."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    @property
    def tokens(self) -> int:
        """Estimated size."""
        return sum(entry.tokens for entry in self._entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(self._entries)

    def messages(self) -> list[ModelMessage]:
        """What the model sees."""
        return [entry.message for entry in self._entries]

    def extend(self, entries: Iterable[Entry]) -> None:
        """Add to the end."""
        self._entries.extend(entries)

    def clear(self) -> None:
        """Let go of everything."""
        self._entries.clear()

    def without(self, seqs: Iterable[int]) -> None:
        """Take out single messages that a turn is about to deal with."""
        taken = set(seqs)
        self._entries = [
            entry
            for entry in self._entries
            if entry.kind is not EntryKind.TALK or not entry.seqs or not taken.issuperset(entry.seqs)
        ]

    def change(self, seq: int, entry: Entry | None) -> None:
        """Put another entry in the place of the one that is this message alone; None takes it out."""
        for index, known in enumerate(self._entries):
            if known.kind is EntryKind.TALK and known.seqs == (seq,):
                self._entries[index : index + 1] = [] if entry is None else [entry]
                return

    def oldest(self, fraction: float, *, summaries_limit: int) -> tuple[Entry, ...]:
        """The oldest talk, about `fraction` of all talk by size, up to a place where a history may begin.

        Args:
            summaries_limit: tokens that summaries and omissions may have; above, they are part of what is returned.

        Returns nothing when no cut leaves `KEEP` entries.
        """
        head = next((i for i, entry in enumerate(self._entries) if entry.kind is EntryKind.TALK), len(self._entries))
        talk = self._entries[head:]
        wanted, size, cut = fraction * sum(entry.tokens for entry in talk), 0, 0
        for index in range(len(talk) - KEEP):
            size += talk[index].tokens
            if is_boundary(talk[index + 1].message):
                cut = index + 1
                if size >= wanted:
                    break
        if cut == 0:
            return ()
        is_heavy = sum(entry.tokens for entry in self._entries[:head]) > summaries_limit
        return tuple(self._entries[0 if is_heavy else head : head + cut])

    def omission(self) -> Entry | None:
        """The first omission, if any."""
        return next((entry for entry in self._entries if entry.kind is EntryKind.OMISSION), None)

    def replace(self, covered: Sequence[Entry], entry: Entry) -> bool:
        """Put one entry in the place of others; False, and nothing changes, when those do not stand there any more."""
        try:
            start = self._entries.index(covered[0])
        except (ValueError, IndexError):
            return False
        there = self._entries[start : start + len(covered)]
        if len(there) != len(covered) or any(a is not b for a, b in zip(there, covered, strict=True)):
            return False
        self._entries[start : start + len(covered)] = [entry]
        return True
