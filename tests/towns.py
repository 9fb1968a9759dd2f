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
from typing import Any, Protocol

import trio

from tests.stand_ins import discord, slack
from tests.stand_ins.discord import DiscordStandIn, open_discord
from tests.stand_ins.openai import last_user_text
from tests.stand_ins.serving import Answer, Use
from tests.stand_ins.slack import SlackStandIn, open_slack
from tests.stand_ins.telegram import Telegram, open_telegram
from tests.stand_ins.twitch import TwitchStandIn, open_twitch

MARKER = re.compile(r"\bm\d+\b")
_SAID = re.compile(r"^\[[^\]]*\] [^\n]*?: (?P<text>.*)$", re.MULTILINE)


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


class Town(Protocol):
    """One platform with its rooms."""

    platform: str
    config: str
    complaints: list[str]

    async def say(self, room: int, person: str, text: str, *, addressed: bool, direct: bool = False) -> None:
        """A person says something; `room` is the number of a room, or -1 for a direct chat."""
        ...

    def heard(self, room: int) -> list[str]:
        """What the agent said in a room, in order, as it reads now."""
        ...

    async def lose_connection(self) -> None:
        """Whatever ends a connection there."""
        ...

    def stall(self, seconds: float) -> None:
        """Answer slowly from now on."""
        ...


def _words(text: str, addressed: bool) -> str:
    return f"{text} addressed" if addressed else text


@dataclass
class DiscordTown:
    standin: DiscordStandIn
    rooms: int
    platform: str = "discord"
    channels: list[str] = field(default_factory=list)
    people: dict[str, str] = field(default_factory=dict)
    guild: str = ""
    losses: int = 0

    def __post_init__(self) -> None:
        self.guild = self.standin.add_guild("Club")
        self.channels = [self.standin.add_channel(self.guild, f"room{n}") for n in range(self.rooms)]

    @property
    def config(self) -> str:
        return (
            f'[messaging.discord]\ntoken = "{self.standin.token}"\nrest_url = "{self.standin.rest_url}"\n'
            'dm_allowed_users = ["*"]\n'
        )

    @property
    def complaints(self) -> list[str]:
        return self.standin.complaints

    def person(self, name: str) -> str:
        if name not in self.people:
            self.people[name] = self.standin.add_user(name, guild=self.guild)
        return self.people[name]

    def place(self, room: int, name: str = "") -> str:
        return self.standin.direct(self.person(name)) if room < 0 else self.channels[room]

    async def say(self, room: int, person: str, text: str, *, addressed: bool) -> None:
        mention = f"<@{discord.BOT}> " if addressed and room >= 0 else ""
        self.standin.post(self.place(room, person), self.person(person), mention + _words(text, addressed))

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

    def stall(self, seconds: float) -> None:
        self.standin.latency_s = seconds


@dataclass
class SlackTown:
    standin: SlackStandIn
    rooms: int
    platform: str = "slack"
    channels: list[str] = field(default_factory=list)
    people: dict[str, str] = field(default_factory=dict)
    losses: int = 0

    def __post_init__(self) -> None:
        self.channels = [self.standin.add_channel(f"C{n:03}", f"room{n}") for n in range(self.rooms)]

    @property
    def config(self) -> str:
        return (
            f'[messaging.slack]\nbot_token = "{self.standin.bot_token}"\napp_token = "{self.standin.app_token}"\n'
            f'api_url = "{self.standin.api_url}"\ndm_allowed_users = ["*"]\n'
        )

    @property
    def complaints(self) -> list[str]:
        return self.standin.complaints

    def person(self, name: str) -> str:
        if name not in self.people:
            self.people[name] = self.standin.add_user(f"U{len(self.people):04}", name, display=name)
        return self.people[name]

    def place(self, room: int, name: str = "") -> str:
        if room >= 0:
            return self.channels[room]
        number = f"D{self.person(name)[1:]}"
        if number not in self.standin.channels:
            self.standin.add_channel(number, user=self.person(name))
        return number

    async def say(self, room: int, person: str, text: str, *, addressed: bool) -> None:
        mention = f"<@{slack.BOT}> " if addressed and room >= 0 else ""
        self.standin.post(self.place(room, person), self.person(person), mention + _words(text, addressed))

    def heard(self, room: int, name: str = "") -> list[str]:
        place = self.place(room, name)
        return [sent.markdown for sent in self.standin.sent if sent.channel == place]

    async def lose_connection(self) -> None:
        self.losses += 1
        if self.losses % 2:
            self.standin.drop_sockets()
        else:
            self.standin.disconnect("refresh_requested")

    def stall(self, seconds: float) -> None:
        self.standin.latency_s = seconds


@dataclass
class TelegramTown:
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

    @property
    def complaints(self) -> list[str]:
        return self.standin.complaints

    def person(self, name: str) -> Any:
        if name not in self.people:
            self.people[name] = self.standin.user(name, username=name)
        return self.people[name]

    def place(self, room: int, name: str = "") -> Any:
        return self.standin.private(self.person(name)) if room < 0 else self.chats[room]

    async def say(self, room: int, person: str, text: str, *, addressed: bool) -> None:
        mention = "@spacebot_bot " if addressed and room >= 0 else ""
        self.standin.post(self.place(room, person), self.person(person), mention + _words(text, addressed))

    def heard(self, room: int, name: str = "") -> list[str]:
        return self.standin.texts(self.place(room, name))

    async def lose_connection(self) -> None:
        self.losses += 1
        if self.losses % 2:
            self.standin.hang_up(method="getUpdates")
        else:
            self.standin.fail(method="getUpdates")

    def stall(self, seconds: float) -> None:
        self.standin.latency_s = seconds


@dataclass
class TwitchTown:
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

    @property
    def complaints(self) -> list[str]:
        return self.standin.complaints

    async def say(self, room: int, person: str, text: str, *, addressed: bool) -> None:
        mention = f"@{self.standin.login} " if addressed else ""
        await self.standin.post(f"room{max(room, 0)}", person, mention + _words(text, addressed))

    def heard(self, room: int, name: str = "") -> list[str]:
        return [said.text for said in self.standin.sent if said.room == f"room{max(room, 0)}"]

    async def lose_connection(self) -> None:
        self.losses += 1
        await (self.standin.reconnect() if self.losses % 2 else self.standin.drop())

    def stall(self, seconds: float) -> None:
        self.standin.is_mute = seconds > 0


AnyTown = DiscordTown | SlackTown | TelegramTown | TwitchTown


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
    *, rooms: int, platforms: tuple[str, ...] = ("discord", "slack", "telegram", "twitch"), keep: bool = True
) -> AsyncIterator[Towns]:
    """Run the stand-ins while the block runs."""
    async with AsyncExitStack() as stack:
        towns: dict[str, AnyTown] = {}
        if "discord" in platforms:
            towns["discord"] = DiscordTown(await stack.enter_async_context(open_discord()), rooms)
        if "slack" in platforms:
            towns["slack"] = SlackTown(await stack.enter_async_context(open_slack()), rooms)
        if "telegram" in platforms:
            towns["telegram"] = TelegramTown(await stack.enter_async_context(open_telegram(keep=keep)), rooms)
        if "twitch" in platforms:
            towns["twitch"] = TwitchTown(await stack.enter_async_context(open_twitch()), rooms)
        yield Towns(towns)


async def until(condition: Callable[[], bool], patience_s: float = 30.0) -> bool:
    """Wait for something in another process, which has no events for us."""
    with trio.move_on_after(patience_s):
        while not condition():
            await trio.sleep(0.02)
        return True
    return False
