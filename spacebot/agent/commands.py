"""Commands that people give in a conversation: one table for every platform. They work beside the talk, at once.

Flow:    Agent.take -> command_of -> run_command -> answer recorded with the command -> delivery
Floor:   agent
Source:  messaging spec 20 (command registry), process spec 4.14
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from spacebot.agent.parts import AgentParts
from spacebot.agent.status import StatusBlock
from spacebot.base.tree import NodeKind
from spacebot.conversations.records import ResponseMode
from spacebot.messaging.messages import Command, InboundMessage

_DENIED = "That is for those who look after this room."
_NOT_YOURS = "A direct chat becomes home only for people whom my owner lists (dm_allowed_users or authority)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Where a command was given, and what the agent is doing there."""

    parts: AgentParts
    message: InboundMessage
    status: StatusBlock | None
    model_label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One command."""

    name: str
    description: str
    run: Callable[[Situation], Awaitable[str]]
    aliases: tuple[str, ...] = ()
    is_control: bool = False  # changes how the agent behaves for everybody in the room


async def _help(situation: Situation) -> str:
    return "\n".join(f"/{entry.name}: {entry.description}" for entry in COMMANDS)


async def _whoami(situation: Situation) -> str:
    author = situation.message.author
    kind = "a direct chat" if situation.message.is_direct else "a shared room"
    return (
        f"You are {author.name} (id {author.id}) in {situation.message.conversation_id}, {kind}. "
        f"I am {situation.parts.id}."
    )


async def _status(situation: Situation) -> str:
    mode = await situation.parts.rooms.response_mode(situation.message.conversation_id)
    lines = [f"Agent {situation.parts.id}, model {situation.model_label}, mode {mode.replace('_', '-')}."]
    for kind, word in ((NodeKind.BRANCH, "thinking about"), (NodeKind.WORKER, "working on")):
        nodes = situation.status.live(kind) if situation.status is not None else ()
        lines += [f"{word}: {node.description[:100]}" + (f" ({node.status})" if node.status else "") for node in nodes]
    return "\n".join(lines if len(lines) > 1 else [*lines, "Nothing is running."])


def _switch(mode: ResponseMode, said: str) -> Callable[[Situation], Awaitable[str]]:
    async def run(situation: Situation) -> str:
        if situation.message.is_direct:
            return "In a direct chat I always answer."
        await situation.parts.rooms.set_response_mode(situation.message.conversation_id, mode)
        return said

    return run


async def _sethome(situation: Situation) -> str:
    message, rooms = situation.message, situation.parts.rooms
    is_stranger = message.is_direct and not situation.message.author.is_listed  # anybody may open a direct chat
    if is_stranger and await rooms.home(message.adapter_key) != message.conversation_id:
        return _NOT_YOURS
    await rooms.set_home(message.adapter_key, message.conversation_id)
    return "This is home now: what nobody here asked for comes to this conversation."


COMMANDS: tuple[Entry, ...] = (
    Entry(name="help", description="what can be typed", run=_help),
    Entry(name="status", description="what I am doing", run=_status),
    Entry(name="whoami", description="who you are to me", run=_whoami),
    Entry(
        name="active",
        description="answer whenever it helps",
        run=_switch(ResponseMode.ACTIVE, "I answer again whenever it helps."),
        is_control=True,
    ),
    Entry(
        name="mention-only",
        description="answer only when I am named",
        run=_switch(ResponseMode.MENTION_ONLY, "I listen, and answer when somebody names me."),
        aliases=("mention_only", "mentiononly"),
        is_control=True,
    ),
    Entry(
        name="quiet",
        description="listen, but say nothing",
        run=_switch(ResponseMode.OBSERVE, "I listen and say nothing until somebody types /active."),
        aliases=("observe",),
        is_control=True,
    ),
    Entry(name="sethome", description="make this the home channel", run=_sethome, is_control=True),
)
_BY_NAME = {name: entry for entry in COMMANDS for name in (entry.name, *entry.aliases)}


def command_table() -> tuple[tuple[str, str], ...]:
    """(name, description) of each, for platforms that list them."""
    return tuple((entry.name, entry.description) for entry in COMMANDS)


def command_of(message: InboundMessage) -> Entry | None:
    """The command that a message is; None for ordinary talk. A slash at the start of a typed text counts too."""
    command = message.command
    if command is None:
        word, _, args = message.text.strip().partition(" ")
        if not word.startswith("/") or "\n" in word:
            return None
        command = Command(name=word[1:].casefold(), args=args)
    return _BY_NAME.get(command.name.casefold())


async def run_command(entry: Entry, situation: Situation, *, may_control: bool) -> str:
    """Do what a command says; returns the answer. Errors: StorageError."""
    if entry.is_control and not may_control:
        return _DENIED
    return await entry.run(situation)
