"""forget_me: whoever asks for it in a chat has everything about them erased, after saying so a second time.

The tool can only ever mean the person whom the platform authenticated as the writer of the message that the process
serves; no argument names anybody. The first call asks for a code word; the erasure begins when a later message of the
same person holds that word. The message is read from the log, not from what a model says of it.

Flow:    first message -> call -> code word ; second message -> call -> ForgetDesk.schedule
Floor:   tools
Source:  memory spec 8.3 and pitfall P-33; the two messages are ours
"""

import re
import secrets
from dataclasses import dataclass
from typing import ClassVar, Protocol

from spacebot.base.clock import monotonic_s
from spacebot.base.errors import SpacebotError, ToolError
from spacebot.base.ids import ConversationId, platform_of
from spacebot.base.tree import Node
from spacebot.memory.types import Provenance
from spacebot.tools.contract import ToolArguments, ToolOutput

PATIENCE_S = 900.0  # how long a code word is good
WAITING = 1000  # people whose answer is awaited; the oldest is dropped
ALPHABET = "bcdfghjkmnpqrstvwxz23456789"  # nothing that looks like something else, and no words
LENGTH = 6


class ForgetDesk(Protocol):
    """Who erases."""

    async def message_text(self, message_id: str, channel_id: str, user_id: str) -> str | None:
        """What a person wrote in a message; None when the log has no such message of theirs."""
        ...

    async def amount_of(self, person: str) -> str:
        """In words, how much there is of a person (platform:user). Errors: StorageError."""
        ...

    async def schedule(self, person: str, channel_id: str, branch_id: str) -> None:
        """Erase a person once what the process found out has been told; from the return on it will happen.

        Errors: StorageError.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Asked:
    code: str
    message_id: str
    until: float


class Confirmations:
    """Whose second word is awaited; one per agent, lost with the program, which then asks again."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}

    def ask(self, person: str, message_id: str) -> str:
        """A code word for a person; an earlier one is void."""
        self._asked.pop(person, None)
        while len(self._asked) >= WAITING:
            del self._asked[next(iter(self._asked))]
        code = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
        self._asked[person] = _Asked(code, message_id, monotonic_s() + PATIENCE_S)
        return code

    def take(self, person: str, message_id: str, text: str) -> bool:
        """Whether a message is the second word of a person; a word is good once."""
        asked = self._asked.get(person)
        if asked is None or asked.message_id == message_id or monotonic_s() > asked.until:
            return False
        if asked.code not in re.findall(r"\w+", text.lower()):
            return False
        del self._asked[person]
        return True


class ForgetMeArguments(ToolArguments):
    """No arguments: who is meant is known."""


class ForgetMe:
    """Erases the writer of the message that the process serves."""

    name: ClassVar[str] = "forget_me"
    arguments: ClassVar[type[ToolArguments]] = ForgetMeArguments

    def __init__(self, *, desk: ForgetDesk, confirmations: Confirmations, provenance: Provenance) -> None:
        self._desk = desk
        self._confirmations = confirmations
        self._provenance = provenance

    async def call(self, arguments: ForgetMeArguments, node: Node) -> ToolOutput:
        """Ask for the second word, or, when the message holds it, have the person erased."""
        origin = self._provenance
        if origin.user_id is None or origin.channel_id is None or origin.message_id is None:
            raise ToolError("it is not known who asks for this; the owner can do it: spacebot memory forget --person")
        person = f"{platform_of(ConversationId(origin.channel_id))}:{origin.user_id}"
        try:
            text = await self._desk.message_text(origin.message_id, origin.channel_id, origin.user_id)
            if text is None:
                raise ToolError("the message that asks for this is not the person's own; let them ask themselves")
            if self._confirmations.take(person, origin.message_id, text):
                await self._desk.schedule(person, origin.channel_id, node.id)
                return ToolOutput.of(
                    scheduled=True,
                    message="Confirmed. Everything is erased as soon as this was told, this conversation included.",
                )
            code = self._confirmations.ask(person, origin.message_id)
            return ToolOutput.of(
                scheduled=False,
                code=code,
                amount=await self._desk.amount_of(person),
                message="Nothing is erased yet. Tell the person what goes, that it is for good, and ask them to answer "
                f"with the word {code} within {PATIENCE_S / 60:.0f} minutes. Then call this tool again.",
            )
        except SpacebotError as error:
            raise error if isinstance(error, ToolError) else ToolError(str(error)) from error
