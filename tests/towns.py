"""The stand-ins of all platforms behind one face, for whole-program tests and benchmarks.

    async with open_towns(rooms=2) as towns:
        daemon = Daemon(folder, model_url=model.url, extra=towns.config)
        ...
        await towns["discord"].say(0, "ann", "m1 hello", addressed=True)
        await towns["discord"].until(lambda: towns["discord"].heard(0) == ["m1"])

Each town has the same rooms and people; what is said carries a marker such as `m17`, and the model of `mark` answers
with the markers of the messages that were addressed to the agent.
"""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import trio

from tests.stand_ins import discord, slack
from tests.stand_ins.discord import DiscordStandIn, open_discord
from tests.stand_ins.discord_shapes import ADMINISTRATOR
from tests.stand_ins.openai import last_user_text
from tests.stand_ins.serving import Answer, Use
from tests.stand_ins.slack import SlackStandIn, open_slack
from tests.stand_ins.telegram import Telegram, open_telegram
from tests.stand_ins.twitch import TwitchStandIn, open_twitch

MARKER = re.compile(r"\bm\d+\b")
PLATFORMS = ("discord", "slack", "telegram", "twitch")
BOSS = "boss"  # moderates wherever there are moderators


def mark(body: Any) -> Answer:
    """The model: repeats the markers of what was addressed to the agent in this turn; says nothing to the rest."""
    names = {tool["function"]["name"] for tool in body.get("tools", ())}
    if "reply" not in names:
        return Answer(text="done")
    asked = last_user_text(body).rpartition("</now>")[2]
    found = [marker for line in asked.splitlines() if "addressed" in line for marker in MARKER.findall(line)]
    if found:
        return Answer(uses=(Use("reply", {"content": " ".join(found)}),))
    return Answer(uses=(Use("skip", {"reason": "not for me"}),))


class Town:
    """One platform with its rooms; `room` is the number of a room, or -1 for a direct chat."""

    standin: Any
    platform: str
    rooms: int

    @property
    def config(self) -> str:
        """Its table of `config.toml`."""
        raise NotImplementedError

    @property
    def complaints(self) -> list[str]:
        """What the stand-in found wrong."""
        found: list[str] = self.standin.complaints
        return found

    @property
    def connected(self) -> bool:
        """Whether the agent has a connection."""
        return bool(self.standin.connected)

    @property
    def port(self) -> int:
        """Where the stand-in listens."""
        return int(self.standin.port)

    # What people do.

    async def say(self, room: int, person: str, text: str, *, addressed: bool) -> Any:
        """A person says something; returns its id there."""
        raise NotImplementedError

    async def earlier(self, room: int, person: str, text: str) -> None:
        """A person said something before the agent came."""
        raise NotImplementedError

    async def edit(self, room: int, message: Any, text: str) -> None:
        """Its writer changes a message; nothing happens where that cannot be."""

    async def delete(self, room: int, message: Any) -> None:
        """Its writer takes a message back; nothing happens where that cannot be, or bots are not told."""

    async def command(self, room: int, person: str, name: str) -> None:
        """A person gives a command; `BOSS` rules over all rooms."""
        raise NotImplementedError

    async def press(self, room: int, person: str, label: str) -> None:
        """A person presses a button of the newest message."""
        raise NotImplementedError

    async def attach(self, room: int, person: str, text: str, data: bytes, name: str, media_type: str) -> None:
        """A person sends a file with some words that name the agent."""
        raise NotImplementedError

    # What the agent did.

    def heard(self, room: int, name: str = "") -> list[str]:
        """What the agent said in a room, or to a person, in order, as it reads now."""
        raise NotImplementedError

    def versions(self, room: int) -> list[str]:
        """What the newest message of the agent said before it was changed, oldest first."""
        return []

    def reactions(self) -> list[str]:
        """Emojis that the agent put on messages."""
        return []

    def files(self, room: int) -> list[tuple[str, bytes]]:
        """Names and contents of the files that the agent sent."""
        return []

    # How the platform misbehaves.

    async def lose_connection(self) -> None:
        """Whatever ends a connection there."""
        raise NotImplementedError

    def stall(self, seconds: float) -> None:
        """Answer slowly from now on."""
        self.standin.latency_s = seconds

    def forbid(self, room: int) -> None:
        """The agent may not write there any more."""
        raise NotImplementedError

    def slow_down(self) -> None:
        """The next message of the agent comes too early."""
        raise NotImplementedError

    async def change_token(self, token: str) -> None:
        """The old token is worth nothing any more, also to those who are signed in with it."""
        raise NotImplementedError


def _words(text: str, addressed: bool) -> str:
    return f"{text} addressed" if addressed else text


@dataclass
class DiscordTown(Town):
    standin: DiscordStandIn
    rooms: int
    platform: str = "discord"
    channels: list[str] = field(default_factory=list)
    people: dict[str, str] = field(default_factory=dict)
    guild: str = ""
    rulers: str = ""  # role of those who moderate
    losses: int = 0

    def __post_init__(self) -> None:
        self.guild = self.standin.add_guild("Club")
        self.rulers = self.standin.add_role(self.guild, "rulers", ADMINISTRATOR)
        self.channels = [self.standin.add_channel(self.guild, f"room{n}") for n in range(self.rooms)]

    @property
    def config(self) -> str:
        return (
            f'[messaging.discord]\ntoken = "{self.standin.token}"\nrest_url = "{self.standin.rest_url}"\n'
            'dm_allowed_users = ["*"]\n'
        )

    def person(self, name: str) -> str:
        if name not in self.people:
            roles = [self.rulers] if name == BOSS else []
            self.people[name] = self.standin.add_user(name, guild=self.guild, roles=roles)
        return self.people[name]

    def place(self, room: int, name: str = "") -> str:
        return self.standin.direct(self.person(name)) if room < 0 else self.channels[room]

    async def say(self, room: int, person: str, text: str, *, addressed: bool) -> Any:
        mention = f"<@{discord.BOT}> " if addressed and room >= 0 else ""
        return self.standin.post(self.place(room, person), self.person(person), mention + _words(text, addressed))

    def heard(self, room: int, name: str = "") -> list[str]:
        place = self.place(room, name)
        return [sent.text for sent in self.standin.sent if sent.room == place and not sent.is_deleted]

    async def lose_connection(self) -> None:
        self.losses += 1
        match self.losses % 3:
            case 0:
                self.standin.ask_reconnect()
            case 1:
                await self.standin.drop_sockets()
            case _:
                self.standin.invalidate_sessions(resumable=True)

    async def earlier(self, room: int, person: str, text: str) -> None:
        assert not self.connected
        self.standin.post(self.channels[room], self.person(person), text)

    async def edit(self, room: int, message: str, text: str) -> None:
        self.standin.edit(self.channels[room], message, text)

    async def delete(self, room: int, message: str) -> None:
        self.standin.delete(self.channels[room], message)

    async def command(self, room: int, person: str, name: str) -> None:
        self.standin.command(self.place(room, person), self.person(person), name)

    async def press(self, room: int, person: str, label: str) -> None:
        carrier = [sent for sent in self.standin.sent if sent.room == self.place(room, person)][-1]
        buttons = [button for row in carrier.body["components"] for button in row["components"]]
        action = next(button["custom_id"] for button in buttons if button["label"] == label)
        self.standin.press(carrier.room, self.person(person), carrier.id, action)

    async def attach(self, room: int, person: str, text: str, data: bytes, name: str, media_type: str) -> None:
        file = self.standin.attach(self.channels[room], name, data, media_type)
        words = f"<@{discord.BOT}> {text} addressed"
        self.standin.post(self.channels[room], self.person(person), words, attachments=[file])

    def versions(self, room: int) -> list[str]:
        return [sent for sent in self.standin.sent if sent.room == self.channels[room]][-1].edits

    def reactions(self) -> list[str]:
        return [emoji for _, emoji in self.standin.reactions]

    def files(self, room: int) -> list[tuple[str, bytes]]:
        return [file for sent in self.standin.sent if sent.room == self.channels[room] for file in sent.files]

    def forbid(self, room: int) -> None:
        self.standin.revoke(self.channels[room], "send")

    def slow_down(self) -> None:
        self.standin.refuse_next(1, retry_after_s=1.0)

    async def change_token(self, token: str) -> None:
        self.standin.token = token
        self.standin.close_sockets(4004)


@dataclass
class SlackTown(Town):
    standin: SlackStandIn
    rooms: int
    platform: str = "slack"
    channels: list[str] = field(default_factory=list)
    people: dict[str, str] = field(default_factory=dict)
    losses: int = 0
    thread: str | None = None  # where people talk from now on

    def __post_init__(self) -> None:
        self.channels = [self.standin.add_channel(f"C{n:03}", f"room{n}") for n in range(self.rooms)]

    @property
    def config(self) -> str:
        return (
            f'[messaging.slack]\nbot_token = "{self.standin.bot_token}"\napp_token = "{self.standin.app_token}"\n'
            f'api_url = "{self.standin.api_url}"\ndm_allowed_users = ["*"]\n'
        )

    def person(self, name: str) -> str:
        if name not in self.people:
            number = f"U{len(self.people):04}"
            self.people[name] = self.standin.add_user(number, name, display=name, is_admin=name == BOSS)
        return self.people[name]

    def place(self, room: int, name: str = "") -> str:
        if room >= 0:
            return self.channels[room]
        number = f"D{self.person(name)[1:]}"
        if number not in self.standin.channels:
            self.standin.add_channel(number, user=self.person(name))
        return number

    async def say(self, room: int, person: str, text: str, *, addressed: bool) -> Any:
        mention = f"<@{slack.BOT}> " if addressed and room >= 0 else ""
        words = mention + _words(text, addressed)
        return self.standin.post(self.place(room, person), self.person(person), words, thread=self.thread)

    def heard(self, room: int, name: str = "") -> list[str]:
        place = self.place(room, name)
        return [sent.markdown for sent in self.standin.sent if sent.channel == place]

    async def lose_connection(self) -> None:
        self.losses += 1
        if self.losses % 2:
            self.standin.drop_sockets()
        else:
            self.standin.disconnect("refresh_requested")

    async def earlier(self, room: int, person: str, text: str) -> None:
        self.standin.keep(self.channels[room], self.person(person), text)

    async def edit(self, room: int, message: str, text: str) -> None:
        self.standin.edit(self.channels[room], message, text)

    async def delete(self, room: int, message: str) -> None:
        self.standin.delete(self.channels[room], message)

    async def command(self, room: int, person: str, name: str) -> None:
        self.standin.slash(self.place(room, person), self.person(person), "/spacebot", name)

    async def press(self, room: int, person: str, label: str) -> None:
        carrier = [sent for sent in self.standin.sent if sent.channel == self.place(room, person)][-1]
        buttons = [button for block in carrier.blocks if block["type"] == "actions" for button in block["elements"]]
        self.standin.press(
            carrier, self.person(person), next(button for button in buttons if button["text"]["text"] == label)
        )

    async def attach(self, room: int, person: str, text: str, data: bytes, name: str, media_type: str) -> None:
        file = self.standin.add_file(name, media_type, data)
        words = f"<@{slack.BOT}> {text} addressed"
        self.standin.post(self.channels[room], self.person(person), words, files=[file])

    def versions(self, room: int) -> list[str]:
        return [sent for sent in self.standin.sent if sent.channel == self.channels[room]][-1].versions

    def reactions(self) -> list[str]:
        return [name for _, _, name in self.standin.reactions]

    def files(self, room: int) -> list[tuple[str, bytes]]:
        sent = [number for sent in self.standin.sent if sent.channel == self.channels[room] for number in sent.files]
        return [(self.standin.files[number].name, self.standin.files[number].data) for number in sent]

    def forbid(self, room: int) -> None:
        self.standin.channels[self.channels[room]].is_member = False

    def slow_down(self) -> None:
        self.standin.rate_limit(1, "1", method="chat.postMessage")

    async def change_token(self, token: str) -> None:
        self.standin.bot_token = token  # an open connection goes on until it is told
        self.standin.send_event({"type": "tokens_revoked", "tokens": {"oauth": [], "bot": [slack.BOT]}})

    @property
    def connected(self) -> bool:
        return self.standin.sockets > 0


@dataclass
class TelegramTown(Town):
    standin: Telegram
    rooms: int
    platform: str = "telegram"
    chats: list[Any] = field(default_factory=list)
    people: dict[str, Any] = field(default_factory=dict)
    losses: int = 0

    def __post_init__(self) -> None:
        self.chats = [self.standin.group(f"room{n}") for n in range(self.rooms)]

    @property
    def config(self) -> str:
        return f'[messaging.telegram]\ntoken = "{self.standin.token}"\napi_url = "{self.standin.url}"\n'

    def person(self, name: str) -> Any:
        if name not in self.people:
            self.people[name] = self.standin.user(name, username=name)
            if name == BOSS:
                for chat in self.chats:
                    chat.administrators.add(self.people[name].id)
        return self.people[name]

    def place(self, room: int, name: str = "") -> Any:
        return self.standin.private(self.person(name)) if room < 0 else self.chats[room]

    async def say(self, room: int, person: str, text: str, *, addressed: bool) -> Any:
        mention = "@spacebot_bot " if addressed and room >= 0 else ""
        return self.standin.post(self.place(room, person), self.person(person), mention + _words(text, addressed))

    def heard(self, room: int, name: str = "") -> list[str]:
        return self.standin.texts(self.place(room, name))

    async def lose_connection(self) -> None:
        self.losses += 1
        if self.losses % 2:
            self.standin.hang_up(method="getUpdates")
        else:
            self.standin.fail(method="getUpdates")

    async def edit(self, room: int, message: int, text: str) -> None:
        self.standin.edit(self.chats[room], message, text)

    async def command(self, room: int, person: str, name: str) -> None:
        self.standin.post(self.place(room, person), self.person(person), f"/{name.replace('-', '_')}@spacebot_bot")

    async def press(self, room: int, person: str, label: str) -> None:
        chat = self.place(room, person)
        carrier = [sent for sent in self.standin.sent if sent.chat_id == chat.id][-1]
        self.standin.press(chat, self.person(person), carrier.message_id, label)

    async def attach(self, room: int, person: str, text: str, data: bytes, name: str, media_type: str) -> None:
        words, kind = f"@spacebot_bot {text} addressed", "photo" if media_type.startswith("image/") else "document"
        more = {} if kind == "photo" else {"file_name": name, "mime_type": media_type}
        self.standin.attach(self.chats[room], self.person(person), kind, data, words, **more)

    def versions(self, room: int) -> list[str]:
        newest = [sent for sent in self.standin.sent if sent.chat_id == self.chats[room].id][-1]
        return [text for _, text in newest.edits]

    def reactions(self) -> list[str]:
        return [emoji for _, _, emojis in self.standin.reactions for emoji in emojis]

    def files(self, room: int) -> list[tuple[str, bytes]]:
        uploads = [sent.upload for sent in self.standin.sent if sent.chat_id == self.chats[room].id]
        return [(upload.filename, upload.data) for upload in uploads if upload is not None]

    def forbid(self, room: int) -> None:
        self.standin.kick(self.chats[room])

    def slow_down(self) -> None:
        self.standin.slow_down(retry_after=1, method="sendMessage")

    async def change_token(self, token: str) -> None:
        self.standin.token = token
        self.standin.update("message", {})  # ends the poll that waits

    @property
    def connected(self) -> bool:
        return self.standin.is_polled

    @property
    def port(self) -> int:
        return int(self.standin.url.rpartition(":")[2])


@dataclass
class TwitchTown(Town):
    standin: TwitchStandIn
    rooms: int
    platform: str = "twitch"
    losses: int = 0

    def __post_init__(self) -> None:
        self.standin.moderated = {f"room{n}" for n in range(self.rooms)}

    @property
    def config(self) -> str:
        names = ", ".join(f'"room{n}"' for n in range(self.rooms))
        return (
            f'[messaging.twitch]\nusername = "{self.standin.login}"\noauth_token = "{self.standin.token}"\n'
            f'host = "127.0.0.1"\nport = {self.standin.port}\ntls = false\nchannels = [{names}]\n'
        )

    async def say(self, room: int, person: str, text: str, *, addressed: bool) -> Any:
        mention = f"@{self.standin.login} " if addressed else ""
        badges = "moderator/1" if person == BOSS else ""
        words = mention + _words(text, addressed)
        return await self.standin.post(f"room{max(room, 0)}", person, words, badges=badges)

    def heard(self, room: int, name: str = "") -> list[str]:
        return [said.text for said in self.standin.sent if said.room == f"room{max(room, 0)}"]

    async def lose_connection(self) -> None:
        self.losses += 1
        await (self.standin.reconnect() if self.losses % 2 else self.standin.drop())

    def stall(self, seconds: float) -> None:
        self.standin.is_mute = seconds > 0

    async def delete(self, room: int, message: str) -> None:
        await self.standin.delete(f"room{room}", message)

    async def command(self, room: int, person: str, name: str) -> None:
        words = f"@{self.standin.login} /{name}"  # lines that begin with a slash are the chat's own
        await self.standin.post(f"room{room}", person, words, badges="moderator/1" if person == BOSS else "")

    def forbid(self, room: int) -> None:
        self.standin.refusals.append(("msg_banned", f"You are permanently banned from talking in room{room}."))

    def slow_down(self) -> None:
        self.standin.refusals.append(("msg_slowmode", "This room is in slow mode. Wait another 1 seconds."))

    async def change_token(self, token: str) -> None:
        self.standin.token = token
        await self.standin.drop()


AnyTown = DiscordTown | SlackTown | TelegramTown | TwitchTown  # each has what the others have not


@dataclass
class Towns:
    """All platforms."""

    by_platform: Mapping[str, AnyTown]

    def __getitem__(self, platform: str) -> AnyTown:
        return self.by_platform[platform]

    def __iter__(self) -> Any:
        return iter(self.by_platform.values())

    @property
    def config(self) -> str:
        """Their tables of `config.toml`."""
        return "\n".join(town.config for town in self)

    @property
    def complaints(self) -> list[str]:
        """What the stand-ins found wrong."""
        return [f"{town.platform}: {text}" for town in self for text in town.complaints]


@asynccontextmanager
async def open_towns(
    *,
    rooms: int,
    platforms: tuple[str, ...] = PLATFORMS,
    keep: bool = True,
    ports: Mapping[str, int] = MappingProxyType({}),
) -> AsyncIterator[Towns]:
    """Run the stand-ins while the block runs.

    Args:
        ports: where a platform is; any free port for those that are not named.
    """
    async with AsyncExitStack() as stack:
        towns: dict[str, AnyTown] = {}
        if "discord" in platforms:
            towns["discord"] = DiscordTown(
                await stack.enter_async_context(open_discord(port=ports.get("discord", 0))), rooms
            )
        if "slack" in platforms:
            towns["slack"] = SlackTown(await stack.enter_async_context(open_slack(port=ports.get("slack", 0))), rooms)
        if "telegram" in platforms:
            towns["telegram"] = TelegramTown(
                await stack.enter_async_context(open_telegram(keep=keep, port=ports.get("telegram", 0))), rooms
            )
        if "twitch" in platforms:
            towns["twitch"] = TwitchTown(
                await stack.enter_async_context(open_twitch(port=ports.get("twitch", 0))), rooms
            )
        yield Towns(towns)


async def until(condition: Callable[[], bool], patience_s: float = 30.0) -> bool:
    """Wait for something in another process, which has no events for us."""
    with trio.move_on_after(patience_s):
        while not condition():
            await trio.sleep(0.02)
        return True
    return False
