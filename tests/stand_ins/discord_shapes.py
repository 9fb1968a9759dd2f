"""What the Discord stand-in keeps, and how Discord writes it.

Source:  messaging spec 18.3; https://discord.com/developers/docs/resources
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.stand_ins.discord_wire import Socket

BOT, APPLICATION, OWNER = "900000000000000001", "900000000000000002", "900000000000000003"
TOKEN = f"{base64.b64encode(BOT.encode()).decode()}.Gabcde.abcdefghijklmnopqrstuvwxyz0123456789ab"
MESSAGE_CONTENT, ADMINISTRATOR, MANAGE_MESSAGES = 1 << 15, 1 << 3, 1 << 13
STAMP = "2026-01-01T00:00:00.000000+00:00"
EPOCH_MS = 1_420_070_400_000
Json = dict[str, Any]


@dataclass
class Sent:
    """A message that the bot sent, as it reads now."""

    id: str
    room: str
    text: str
    body: Json  # the last request's
    reply_to: str | None = None
    files: list[tuple[str, bytes]] = field(default_factory=list)
    edits: list[str] = field(default_factory=list)  # texts that it had before
    is_deleted: bool = False
    interaction: str | None = None  # the command that it answers


@dataclass
class Call:
    """One REST request."""

    method: str
    path: str
    body: Any
    status: int = 0


@dataclass
class Channel:
    """A channel, thread or direct chat."""

    id: str
    kind: int
    name: str = ""
    guild: str | None = None
    parent: str | None = None
    person: str | None = None
    messages: dict[str, Json] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)  # permissions that the bot lacks: view, send, react, thread, poll …


@dataclass
class Guild:
    """A server."""

    id: str
    name: str
    roles: dict[str, Json] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)  # user -> role ids


@dataclass
class Session:
    """What a gateway connection belongs to, so that it can be resumed."""

    id: str
    events: list[Json] = field(default_factory=list)
    socket: Socket | None = None


def user_json(id: str, name: str, *, bot: bool) -> Json:
    """A person or bot."""
    shown = {"discriminator": "0", "global_name": None if bot else name.title(), "avatar": None, "public_flags": 0}
    return {"id": id, "username": name, "bot": bot} | shown


def role_json(id: str, name: str, permissions: int) -> Json:
    """A role."""
    flags = {"hoist": False, "managed": False, "mentionable": True, "icon": None, "unicode_emoji": None, "flags": 0}
    colors = {"primary_color": 0, "secondary_color": None, "tertiary_color": None}
    return {
        "id": id,
        "name": name,
        "permissions": str(permissions),
        "color": 0,
        "colors": colors,
        "position": 0,
    } | flags


def member_json(guild: Guild, user: str) -> Json:
    """What a server knows of a person."""
    state = {"nick": None, "joined_at": STAMP, "deaf": False, "mute": False, "avatar": None, "flags": 0}
    return {"roles": guild.members.get(user, []), **state}


def channel_json(users: Mapping[str, Json], channel: Channel) -> Json:
    """A channel, thread or direct chat."""
    common: Json = {
        "id": channel.id,
        "type": channel.kind,
        "last_message_id": max(channel.messages, key=int, default=None),
    }
    if channel.person is not None:
        return common | {"recipients": [users[channel.person]]}
    common |= {"guild_id": channel.guild, "name": channel.name, "parent_id": channel.parent, "position": 0}
    if channel.parent is None:
        return common | {"permission_overwrites": [], "nsfw": False, "topic": None, "rate_limit_per_user": 0}
    dates = {"archived": False, "archive_timestamp": STAMP, "locked": False, "auto_archive_duration": 1440}
    return common | {"owner_id": BOT, "member_count": 1, "message_count": 0, "thread_metadata": dates}


def guild_json(channels: Iterable[Channel], users: Mapping[str, Json], guild: Guild) -> Json:
    """A server with its roles and rooms."""
    rooms = [channel for channel in channels if channel.guild == guild.id]
    unset = ("icon", "splash", "discovery_splash", "afk_channel_id", "application_id", "widget_channel_id")
    unset += ("system_channel_id", "rules_channel_id", "description", "banner", "vanity_url_code")
    unset += ("public_updates_channel_id", "safety_alerts_channel_id", "max_presences")
    return dict.fromkeys(unset) | {
        "id": guild.id,
        "name": guild.name,
        "owner_id": OWNER,
        "roles": list(guild.roles.values()),
        "emojis": [],
        "stickers": [],
        "features": [],
        "members": [],
        "presences": [],
        "voice_states": [],
        "channels": [channel_json(users, room) for room in rooms if room.parent is None],
        "threads": [channel_json(users, room) for room in rooms if room.parent is not None],
        "afk_timeout": 300,
        "verification_level": 0,
        "default_message_notifications": 0,
        "explicit_content_filter": 0,
        "mfa_level": 0,
        "system_channel_flags": 0,
        "premium_tier": 0,
        "premium_progress_bar_enabled": False,
        "preferred_locale": "en-US",
        "nsfw_level": 0,
        "joined_at": STAMP,
        "large": False,
        "member_count": len(guild.members),
        "max_members": 250_000,
        "max_video_channel_users": 25,
        "approximate_member_count": 1,
        "approximate_presence_count": 1,
    }
