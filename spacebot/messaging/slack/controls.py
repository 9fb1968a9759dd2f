"""What slash commands and presses of buttons mean. Pure, like `translate`.

Floor:   messaging
Source:  messaging spec 14.2 and 18.4; docs.slack.dev on slash commands and block_actions
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from spacebot.base.ids import AgentId
from spacebot.config.messaging import SlackCommand
from spacebot.messaging.messages import Author, Command, InboundMessage, Interaction
from spacebot.messaging.names import clean_name
from spacebot.messaging.slack.translate import (
    Malformed,
    Me,
    Names,
    conversation_of,
    identifier,
    is_direct,
    optional_identifier,
    readable,
    table,
    team_of,
)

UMBRELLA = "/spacebot"
LINK_ACTION = "link:"  # buttons that open an address; a press of them needs no answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Slash:
    """A slash command."""

    team: str
    channel: str
    user: str
    id: str
    command: str
    args: str
    agent_id: str | None
    is_known: bool
    message_ts: None = None  # a command answers nothing and stands in no thread
    thread: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Press:
    """Something was pressed or chosen."""

    team: str
    channel: str
    user: str
    id: str
    message_ts: str | None
    thread: str | None
    interaction: Interaction


def read_slash(payload: Mapping[str, Any], commands: Sequence[SlackCommand], me: Me) -> Slash:
    """Understand a slash command. Errors: Malformed."""
    command = _name(payload, "command").lower()
    args = str(payload.get("text") or "").strip()
    configured = next((c for c in commands if c.command.lower().lstrip("/") == command.lstrip("/")), None)
    return Slash(
        team=team_of(payload, me),
        channel=identifier(payload, "channel_id"),
        user=identifier(payload, "user_id"),
        id=identifier(payload, "trigger_id"),
        command=command,
        args=args,
        agent_id=None if configured is None else configured.agent_id,
        is_known=configured is not None or command == UMBRELLA,
    )


def read_presses(payload: Mapping[str, Any], me: Me) -> list[Press]:
    """Understand an interaction; nothing for those that are not presses in messages. Errors: Malformed."""
    if payload.get("type") != "block_actions":
        return []
    container, message = _inner(payload, "container"), _inner(payload, "message")
    channel = optional_identifier(_inner(payload, "channel"), "id") or optional_identifier(container, "channel_id")
    if channel is None:
        return []  # in a view or on the home tab, of which we have none
    message_ts = optional_identifier(container, "message_ts") or optional_identifier(message, "ts")
    thread = optional_identifier(container, "thread_ts") or optional_identifier(message, "thread_ts")
    actions = payload.get("actions")
    if not isinstance(actions, list):
        raise Malformed("the actions are none")
    user, trigger = identifier(table(payload, "user"), "id"), identifier(payload, "trigger_id")
    presses: list[Press] = []
    for action in actions:
        if not isinstance(action, Mapping) or str(action.get("action_id") or "").startswith(LINK_ACTION):
            continue
        presses.append(
            Press(
                team=optional_identifier(_inner(payload, "team"), "id") or me.team_id,
                channel=channel,
                user=user,
                id=trigger if not presses else f"{trigger}:{len(presses)}",
                message_ts=message_ts,
                thread=None if thread == message_ts else thread,
                interaction=_interaction(action, message_ts),
            )
        )
    return presses


def _interaction(action: Mapping[str, Any], message_ts: str | None) -> Interaction:
    options = [action.get("selected_option"), *_list(action, "selected_options")]
    options = [option for option in options if isinstance(option, Mapping)]
    values = [str(o.get("value") or "") for o in options]
    labels = [_words(o.get("text")) for o in options]
    plain = ("value", "selected_user", "selected_conversation", "selected_channel", "selected_date", "selected_time")
    values += [str(action[name]) for name in plain if isinstance(action.get(name), str | int)]
    for name in ("selected_users", "selected_conversations", "selected_channels"):
        values += [str(value) for value in _list(action, name)]
    label = ", ".join(filter(None, labels)) or _words(action.get("text"))
    return Interaction(
        action_id=_name(action, "action_id"),
        values=tuple(value for value in values if value),
        label=label or None,
        message_id=message_ts,
    )


def _inner(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def _list(values: Mapping[str, Any], name: str) -> list[Any]:
    value = values.get(name)
    return value if isinstance(value, list) else []


def _name(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 255:
        raise Malformed(f"{name} is missing or none")
    return value


def _words(text: object) -> str:
    words = text.get("text") if isinstance(text, Mapping) else None
    return words if isinstance(words, str) else ""


def inbound_slash(slash: Slash, names: Names, me: Me, now: datetime) -> InboundMessage:
    """The message of a slash command: a control command below the umbrella, else words for the command's agent."""
    message = _inbound(slash, names, me, now)
    said = readable(slash.args, names.people, names.rooms, me)
    if slash.agent_id is not None:
        return replace(message, text=f"{slash.command} {said}".rstrip(), agent_id=AgentId(slash.agent_id))
    name, _, args = said.partition(" ")
    command = Command(name=name.lower().lstrip("/") or "help", args=args.strip())
    return replace(message, text=command.text, command=command)


def inbound_press(press: Press, names: Names, me: Me, now: datetime) -> InboundMessage:
    """The message of a press."""
    return replace(_inbound(press, names, me, now), text=press.interaction.text, interaction=press.interaction)


def _inbound(control: Slash | Press, names: Names, me: Me, now: datetime) -> InboundMessage:
    person = names.people.get(control.user)
    data = {
        "team": control.team,
        "channel": control.channel,
        "ts": control.message_ts,
        "thread_ts": control.thread,
        "user": control.user,
    }
    return InboundMessage(
        platform="slack",
        adapter=me.key,
        conversation_id=conversation_of(me.key, control.team, control.channel, control.thread),
        author=Author(
            id=control.user,
            name=clean_name(person.name if person else control.user),
            handle=f"<@{control.user}>",
            is_moderator=person.is_moderator if person else None,
        ),
        text="",
        sent_at=now,
        platform_id=control.id,
        is_direct=is_direct(control.channel),
        mentions_bot=True,
        server_id=control.team,
        server_name=me.team_name or None,
        room_ids=(control.channel,),
        channel_name=names.room,
        metadata={name: value for name, value in data.items() if value},
    )
