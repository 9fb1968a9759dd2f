"""The end of a run that looks a conversation through for what is worth keeping: memory_persistence_complete.

A model may believe that it saved what it did not. The run ends only when what it reports is what really happened.

Flow:    ids that the model names -> compared with those of MemorySave -> the run ends, `result` stays
Floor:   tools
Source:  memory spec 10.1, process spec 17.5
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from spacebot.base.errors import ToolError
from spacebot.base.ids import MemoryId
from spacebot.base.text import cut_bytes
from spacebot.base.tree import Node
from spacebot.tools.contract import ToolArguments, ToolOutput
from spacebot.tools.memory import MemorySave

SHORTEST_REASON = 3  # characters; spec 10.1
REASON_BYTES = 1000  # of a reason that is kept
NAMED = 20  # ids that an error lists


class PersistenceOutcome(StrEnum):
    """How a run went."""

    SAVED = "saved"
    NO_MEMORIES = "no_memories"


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistenceResult:
    """What a run reported and was found to be true; `memory_ids` in the order of saving."""

    outcome: PersistenceOutcome
    memory_ids: tuple[MemoryId, ...]
    reason: str | None


class MemoryPersistenceCompleteArguments(ToolArguments):
    """Arguments of memory_persistence_complete."""

    outcome: PersistenceOutcome
    saved_memory_ids: tuple[str, ...] = ()
    reason: str | None = None


class MemoryPersistenceComplete:
    """Ends the run once its report agrees with what the run's own `MemorySave` has saved."""

    name: ClassVar[str] = "memory_persistence_complete"
    arguments: ClassVar[type[ToolArguments]] = MemoryPersistenceCompleteArguments

    def __init__(self, save: MemorySave) -> None:
        self._save = save
        self.result: PersistenceResult | None = None  # what was reported; None until then

    async def call(self, arguments: MemoryPersistenceCompleteArguments, node: Node) -> ToolOutput:
        """Check the report and end the run; a wrong one is refused with the difference."""
        named = [memory_id.strip().lower() for memory_id in arguments.saved_memory_ids]
        reason = cut_bytes((arguments.reason or "").strip(), REASON_BYTES)
        if self.result is None:
            if arguments.outcome is PersistenceOutcome.SAVED:
                self._check_saved(named)
            else:
                self._check_nothing(named, reason)
            self.result = PersistenceResult(
                outcome=arguments.outcome, memory_ids=tuple(self._save.saved), reason=reason or None
            )
        output = ToolOutput.of(recorded=True, outcome=self.result.outcome, saved_memory_ids=self.result.memory_ids)
        return ToolOutput(output.text, ends_turn=True)

    def _check_saved(self, named: Sequence[str]) -> None:
        saved = self._save.saved
        if not saved:
            raise ToolError(
                "nothing new was saved in this run; call memory_save first, or report no_memories with a reason"
            )
        if len(set(named)) != len(named):
            raise ToolError("saved_memory_ids names an id twice; name each once")
        missing = [memory_id for memory_id in saved if memory_id not in named]
        invented = [memory_id for memory_id in named if memory_id not in {*saved, *self._save.known}]
        problems = [f"saved but not named: {_listed(missing)}"] if missing else []
        problems += [f"named but not saved in this run: {_listed(invented)}"] if invented else []
        if problems:
            raise ToolError(f"saved_memory_ids is wrong; {'; '.join(problems)}")

    def _check_nothing(self, named: Sequence[str], reason: str) -> None:
        if self._save.saved:
            raise ToolError(f"this run has saved memories; report saved with {_listed(self._save.saved)}")
        if named:
            raise ToolError("saved_memory_ids must be empty when nothing was saved")
        if len(reason) < SHORTEST_REASON:
            raise ToolError("say in `reason` why nothing was worth keeping")


def _listed(ids: Iterable[str]) -> str:
    listed = list(ids)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(repr(memory_id[:64]) for memory_id in listed[:NAMED]) + more
