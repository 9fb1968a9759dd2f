"""Who may speak, and which agent answers: one function for messages, commands and presses of every platform.

Everything is worked out from the configuration as it is at that moment, so a change of the file holds for the next
message, on every adapter.

Rooms are open while no binding of their account names a server or a room. As soon as one does, a room is served only
if some binding covers it. A binding that names nothing covers everything, unless it only lists people for direct
chats. Direct chats go past servers and rooms: there the lists of people decide, those of the account and of all its
bindings taken together.

Flow:    Intake.take -> admit -> the agent's journal; a control command -> may_command
Floor:   messaging; may import config and base
Source:  messaging spec 9, 10 and 19 (3, 16, 17, 33, 34, e, f)
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from spacebot.base.ids import AgentId
from spacebot.config.messaging import ANYBODY, PLATFORMS, BindingConfig, MessagingConfig, WebhookAccount
from spacebot.messaging.messages import Author, InboundMessage

_CLOSED_TO_STRANGERS = frozenset({"discord", "slack"})  # nobody may write directly until somebody is listed
_LISTED_EVERYWHERE = frozenset({"twitch"})  # there is no direct chat: the list says who is heard in rooms


class Verdict(StrEnum):
    """What becomes of a message."""

    ANSWER = "answer"
    OBSERVE = "observe"  # kept as context of the conversation, not answered
    REFUSE = "refuse"  # as if it had never been said


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What was decided, and why, in words for the log.

    Args:
        agent_id: whose conversation it is; None when it is refused.
        binding: the one that decided; None for the default agent.
    """

    verdict: Verdict
    agent_id: AgentId | None
    reason: str
    binding: BindingConfig | None = None


def admit(
    message: InboundMessage,
    messaging: MessagingConfig,
    bindings: Sequence[BindingConfig],
    default_agent: str,
    *,
    agents: Collection[str] | None = None,
) -> Admission:
    """Decide about a message, a press or a command.

    Args:
        bindings: of all accounts, in the owner's order.
        default_agent: answers where no binding says otherwise.
        agents: those that run; a binding of another is passed over, a message that names another itself is refused.
            None takes all for running.
    """
    if message.agent_id is not None and agents is not None and message.agent_id not in agents:
        return _refuse(f"there is no agent {message.agent_id!r}")
    own = [binding for binding in bindings if binding.adapter_key == message.adapter_key]
    if (reason := _why_not(message, messaging, own)) is not None:
        return _refuse(reason)
    served = [binding for binding in own if binding.is_served and (agents is None or binding.agent_id in agents)]
    binding = next((binding for binding in served if _fits(binding, message)), None)
    if message.agent_id is not None:
        return Admission(
            verdict=Verdict.ANSWER, agent_id=message.agent_id, reason="it names its agent", binding=binding
        )
    if binding is None:
        return Admission(verdict=Verdict.ANSWER, agent_id=AgentId(default_agent), reason="no binding matches")
    agent_id = AgentId(binding.agent_id)
    if binding.require_mention and not _is_addressed(message):
        return Admission(verdict=Verdict.OBSERVE, agent_id=agent_id, reason="no mention", binding=binding)
    return Admission(verdict=Verdict.ANSWER, agent_id=agent_id, reason="its binding", binding=binding)


def may_command(message: InboundMessage, admission: Admission) -> bool:
    """Whether its author may give control commands in that conversation."""
    if admission.verdict is Verdict.REFUSE:
        return False
    authority = admission.binding.authority if admission.binding is not None else None
    if authority is None:
        return message.is_direct or message.author.is_moderator is not False
    return not authority or _is_listed(message.author, authority, by_login=message.platform in _LISTED_EVERYWHERE)


def is_named(message: InboundMessage, admission: Admission, messaging: MessagingConfig) -> bool:
    """Whether the owner's lists name its author. One that lets everybody in names nobody."""
    account, binding = messaging.account(message.adapter_key), admission.binding
    people: list[str] = []
    if account is not None and not isinstance(account, WebhookAccount):
        people += account.dm_allowed_users
    if binding is not None:
        people += [*binding.dm_allowed_users, *(binding.authority or ())]
    people = [person for person in people if person != ANYBODY]
    return _is_listed(message.author, people, by_login=message.platform in _LISTED_EVERYWHERE)


def _refuse(reason: str) -> Admission:
    return Admission(verdict=Verdict.REFUSE, agent_id=None, reason=reason)


def _why_not(message: InboundMessage, messaging: MessagingConfig, own: Sequence[BindingConfig]) -> str | None:
    """Why a message is refused; None when it is not."""
    if message.platform not in PLATFORMS:
        return None  # the program's own faces, which know their people themselves
    account = messaging.account(message.adapter_key)
    if account is None or not account.enabled:
        return f"{message.adapter_key} is not in service"
    if isinstance(account, WebhookAccount):
        return None  # its token has decided
    if message.author.is_bot and not account.allow_bot_messages:
        return "bots are not heard (allow_bot_messages)"
    people = [*account.dm_allowed_users, *(person for binding in own for person in binding.dm_allowed_users)]
    if message.platform in _LISTED_EVERYWHERE:
        if people and not _is_listed(message.author, people, by_login=True):
            return "its writer is not listed (dm_allowed_users)"
    elif message.is_direct:
        if not people and message.platform in _CLOSED_TO_STRANGERS:
            return "direct messages are off until somebody is listed (dm_allowed_users)"
        return (
            "its writer is not listed (dm_allowed_users)" if people and not _is_listed(message.author, people) else None
        )
    if any(_server(binding) is not None or binding.channel_ids for binding in own) and not any(
        _covers(binding, message) for binding in own
    ):
        return "no binding covers that room"
    return None


def _fits(binding: BindingConfig, message: InboundMessage) -> bool:
    """Whether a binding's scope holds the message."""
    if message.is_direct and binding.dm_allowed_users:
        return _is_listed(message.author, binding.dm_allowed_users)
    return _is_in_scope(binding, message)


def _covers(binding: BindingConfig, message: InboundMessage) -> bool:
    """Whether a binding opens a room where not every room is open."""
    names_a_place = _server(binding) is not None or binding.channel_ids
    return bool(names_a_place or not binding.dm_allowed_users) and _is_in_scope(binding, message)


def _is_in_scope(binding: BindingConfig, message: InboundMessage) -> bool:
    server = _server(binding)
    if server is not None and server not in _folded((message.server_id,)):
        return False
    return not binding.channel_ids or not _folded(binding.channel_ids).isdisjoint(_folded(message.room_ids))


def _server(binding: BindingConfig) -> str | None:
    named = next((key for key in (binding.guild_id, binding.workspace_id, binding.chat_id) if key is not None), None)
    return None if named is None else named.casefold()


def _folded(names: Iterable[str | None]) -> set[str]:
    return {name.strip().lstrip("#").casefold() for name in names if name}


def _is_addressed(message: InboundMessage) -> bool:
    return message.is_direct or message.mentions_bot or message.interaction is not None or message.command is not None


def _is_listed(author: Author, people: Collection[str], *, by_login: bool = False) -> bool:
    """Whether a person is on a list. Names that people can change count only where the list holds logins."""
    names = {author.id.casefold()}
    if by_login:
        names.add((author.handle or author.name).lstrip("@").casefold())
    return any(person == ANYBODY or person.lstrip("@").casefold() in names for person in people)
