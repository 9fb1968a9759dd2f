"""What people everywhere may count on: the cases of messaging spec 18.7, played on all platforms by their own wires.

One daemon, the stand-ins of all platforms, and a model that does what the case wants. Each case is played on all
platforms side by side; a failure names its platform.
"""

import json
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.flows.stories import Asked, log_of, read_request, reply
from tests.real_daemon import Daemon, Http, free_port
from tests.stand_ins.openai import render, render_whole
from tests.stand_ins.serving import Answer, Connection, Request, Use, serve
from tests.towns import BOSS, MARKER, PLATFORMS, AnyTown, DiscordTown, SlackTown, Towns, mark, open_towns, until

DONE = Answer(text="done")
CAN_EDIT = ("discord", "slack", "telegram")  # people and bots change what they said
CAN_TAKE_BACK = ("discord", "slack", "twitch")  # and the bot is told of it
HAVE_FILES = HAVE_DIRECT = CAN_EDIT
QUIET_ROOMS = "[defaults.coalesce]\ndebounce_ms = 60000\nmin_messages = 3\nmax_wait_ms = 300\n\n"


class Mind:
    """The model. What no plan says is answered by `mark`.

    Args of `plan`: the answers to the requests about a marker, in order; the first one waits for `gate`, and comes a
    piece every `pace_s` seconds.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.bodies: list[Any] = []
        self._answers: dict[str, list[Answer]] = {}
        self._pace: dict[str, tuple[trio.Event | None, float]] = {}

    def plan(self, marker: str, *answers: Answer, gate: trio.Event | None = None, pace_s: float = 0.0) -> None:
        self._answers[marker] = list(answers)
        self._pace[marker] = gate, pace_s

    def about(self, marker: str) -> list[Asked]:
        """The requests whose newest words hold a marker."""
        return [asked for asked in self.asked if marker in MARKER.findall(asked.said)]

    def body_about(self, marker: str) -> Any:
        """The first request about a marker, as it came."""
        return self.bodies[self.asked.index(self.about(marker)[0])]

    async def serve(self, request: Request, connection: Connection) -> None:
        body = request.json()
        asked = read_request(body)
        if not asked.is_channel:
            await (connection.stream(render(DONE)) if body.get("stream") else connection.send(render_whole(DONE)))
            return
        self.asked.append(asked)
        self.bodies.append(body)
        marker = next((found for found in MARKER.findall(asked.said) if self._answers.get(found)), "")
        if not marker:
            await connection.stream(render(mark(body)), one_write=True)
            return
        events = render(self._answers[marker].pop(0))
        gate, pace_s = self._pace.pop(marker, (None, 0.0))
        if gate is not None:
            await gate.wait()
        await connection.begin_stream(events[:1])
        for event in events[1:]:
            await connection.go_on([event], is_end=event is events[-1])
            await trio.sleep(pace_s)


@dataclass
class World:
    """A daemon between its platforms and its model."""

    folder: Path
    mind: Mind
    towns: Towns
    daemon: Daemon
    _numbers: dict[str, int] = field(default_factory=dict)

    def marker(self, town: AnyTown) -> str:
        """A new word that the model knows again."""
        self._numbers[town.platform] = number = self._numbers.get(town.platform, 100) + 1
        return f"m{PLATFORMS.index(town.platform) + 1}{number}"

    async def start(self) -> None:
        """Start the daemon, and wait until all accounts are connected."""
        await trio.to_thread.run_sync(self.daemon.start)
        await self.connected()

    async def connected(self, *keys: str) -> None:
        """Wait until accounts are connected; all that are in use, if none are named."""
        await self.shows(
            lambda found: all(one["state"] == "connected" for key, one in found.items() if not keys or key in keys)
        )
        for town in self.towns:
            if town.platform == "twitch" and not keys:
                await town.standin.joined(*(f"room{n}" for n in range(town.rooms)))

    async def status(self) -> dict[str, Any]:
        """What the program says of each account."""
        http = Http(self.daemon.port)
        try:
            status, body = await http.get("/api/messaging/status")
            assert status == 200
            return {one["key"]: one for one in body["instances"]}
        finally:
            await http.close()

    async def shows(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the status fits."""
        found: dict[str, Any] = {}
        with trio.move_on_after(30):
            while not condition(found := await self.status()):
                await trio.sleep(0.05)
            return found
        raise AssertionError(f"the status never fitted: {found}")

    async def ask(self, town: AnyTown, room: int, person: str = "ann", words: str = "") -> str:
        """Ask something and wait for the answer; returns the question's marker."""
        marker = self.marker(town)
        await town.say(room, person, f"{marker} {words}".strip(), addressed=True)
        assert await until(lambda: marker in " ".join(town.heard(room, person))), f"{marker} was not answered"
        return marker

    async def each(self, case: Callable[[AnyTown], Awaitable[None]], platforms: Sequence[str] = PLATFORMS) -> None:
        """Play a case on platforms side by side."""

        async def play(town: AnyTown) -> None:
            try:
                await case(town)
            except BaseException as error:
                error.add_note(f"on {town.platform}")
                raise

        async with trio.open_nursery() as nursery:
            for town in self.towns:
                if town.platform in platforms:
                    nursery.start_soon(play, town)


@asynccontextmanager
async def open_world(
    folder: Path,
    *,
    rooms: int = 1,
    platforms: tuple[str, ...] = PLATFORMS,
    extra: str = "",
    starts: bool = True,
    is_calm: bool = True,
) -> AsyncIterator[World]:
    """A world for the time of the block; at its end nobody may have anything to complain about.

    Args:
        extra: tables of the configuration.
        starts: begin with a daemon that is connected everywhere.
        is_calm: no connection is lost, so the log holds no trace of errors.
    """
    mind = Mind()
    async with serve(mind.serve) as model, open_towns(rooms=rooms, platforms=platforms) as towns:
        daemon = Daemon(folder, model_url=model.url, extra="\n" + extra + towns.config)
        world = World(folder, mind, towns, daemon)
        async with ending(daemon):
            if starts:
                await world.start()
            yield world
        assert towns.complaints == []
        trace = log_of(daemon).partition("Traceback")
        assert not (is_calm and trace[1]), f"{trace[0][-500:]}{trace[2][:6000]}"


@asynccontextmanager
async def ending(daemon: Daemon) -> AsyncIterator[None]:
    """Nothing is left of a daemon after the block."""
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            if daemon.process is not None and daemon.process.poll() is None:
                await trio.to_thread.run_sync(daemon.kill)


def picture(side: int = 8) -> bytes:
    """A small PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x7f" * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# Reading the room


@pytest.mark.spec("messaging 18.7: coalescing")
async def test_a_burst_is_one_question_and_who_is_called_answers_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path, rooms=2, extra=QUIET_ROOMS) as world:

        async def burst(town: AnyTown) -> None:
            markers = [world.marker(town) for _ in range(3)]
            for person, marker in zip(("ann", "bob", "cid"), markers, strict=True):
                await town.say(0, person, f"{marker} hello", addressed=False)
            assert await until(lambda: bool(world.mind.about(markers[0])))
            (asked,) = world.mind.about(markers[0])
            assert all(marker in asked.said for marker in markers), asked.said
            assert all(name in asked.said.lower() for name in ("ann", "bob", "cid")), asked.said
            assert "3 messages from 3 people" in asked.prompt

        async def mention(town: AnyTown) -> None:
            before = world.marker(town)
            await town.say(1, "ann", before, addressed=False)
            called = await world.ask(town, 1, "bob")
            (asked,) = world.mind.about(called)
            assert before in asked.said, "what was said before is taken along"
            assert await world.ask(town, -1, "cid"), "a direct chat waits for nobody"

        await world.each(burst)
        await world.each(mention)


@pytest.mark.spec("messaging 18.7: edits and deletions")
async def test_what_people_change_or_take_back_is_respected(tmp_path: Path) -> None:
    async with open_world(tmp_path, extra=QUIET_ROOMS) as world:

        async def change(town: AnyTown) -> None:
            can_edit, can_take_back = town.platform in CAN_EDIT, town.platform in CAN_TAKE_BACK
            first, second = world.marker(town), world.marker(town)
            message = await town.say(0, "ann", f"{first} original", addressed=False)
            other = await town.say(0, "ann", f"{second} secretive", addressed=False)
            await town.edit(0, message, f"{first} corrected")
            await town.delete(0, other)
            (asked,) = world.mind.about(await world.ask(town, 0, "bob"))
            assert ("corrected" in asked.said, "original" in asked.said) == (can_edit, not can_edit), asked.said
            assert ("secretive" in asked.said) == (not can_take_back), asked.said

            late = await town.say(0, "ann", f"{world.marker(town)} indiscreet", addressed=False)
            marker, gate = world.marker(town), trio.Event()
            world.mind.plan(marker, reply(marker), gate=gate)
            hasty = await town.say(0, "bob", f"{marker} blunder", addressed=True)
            assert await until(lambda: bool(world.mind.about(marker)))
            await town.edit(0, message, f"{first} rewritten")
            await town.delete(0, late)
            await town.delete(0, hasty)
            gate.set()  # the agent has seen what was taken back meanwhile
            history = json.dumps(world.mind.body_about(await world.ask(town, 0, "bob"))["messages"])
            assert ("rewritten" in history, "corrected" in history) == (can_edit, False), history
            assert ("indiscreet" in history, "blunder" in history) == (not can_take_back, not can_take_back)

        await world.each(change)


@pytest.mark.spec("messaging 18.7: response modes")
async def test_a_room_can_be_made_quiet(tmp_path: Path) -> None:
    async with open_world(tmp_path, extra=QUIET_ROOMS) as world:

        async def switch(town: AnyTown, name: str, answer: str, by: str = BOSS) -> None:
            await town.command(0, by, name)
            assert await until(lambda: any(answer in text for text in town.heard(0))), (name, town.heard(0))

        async def play(town: AnyTown) -> None:
            await switch(town, "quiet", "That is for those who look after this room", by="ann")
            await switch(town, "quiet", "say nothing until")
            unheard = world.marker(town)
            await town.say(0, "ann", unheard, addressed=True)
            await switch(town, "mention-only", "when somebody names me")
            passed = [world.marker(town) for _ in range(3)]
            for marker in passed:
                await town.say(0, "bob", marker, addressed=False)
            named = await world.ask(town, 0, "ann")
            assert not world.mind.about(unheard)
            assert not world.mind.about(passed[0])
            history = json.dumps(world.mind.body_about(named)["messages"])
            assert all(marker in history for marker in (unheard, *passed)), "what was only heard is known"
            await switch(town, "active", "answer again")
            again = [world.marker(town) for _ in range(3)]
            for marker in again:
                await town.say(0, "bob", marker, addressed=False)
            assert await until(lambda: bool(world.mind.about(again[2])))
            await switch(town, "status", "mode active")

        await world.each(play)


# What people see


@pytest.mark.spec("messaging 18.7: typing")
async def test_people_see_that_somebody_writes(tmp_path: Path) -> None:
    async with open_world(tmp_path, platforms=CAN_EDIT) as world:

        def calls(town: AnyTown, sign: str, message: str) -> tuple[list[int], list[int]]:
            """Where the signs and the messages stand among all that the bot did."""
            made: Any = town.standin.calls
            names = [call if isinstance(call, str) else getattr(call, "path", None) or call[0] for call in made]
            signs = [n for n, name in enumerate(names) if name.endswith(sign)]
            return signs, [n for n, name in enumerate(names) if name.endswith(message)]

        names = {
            "discord": ("/typing", "/messages"),
            "slack": ("setStatus", "chat.postMessage"),
            "telegram": ("sendChatAction", "sendMessage"),
        }

        async def play(town: AnyTown) -> None:
            if isinstance(town, SlackTown):  # where only threads have that sign
                root = await town.say(0, "bob", "the root", addressed=False)
                town.thread = root
            marker, gate = world.marker(town), trio.Event()
            world.mind.plan(marker, reply(f"{marker} it is"), gate=gate)
            await town.say(0, "ann", marker, addressed=True)
            assert await until(lambda: bool(calls(town, *names[town.platform])[0])), "no sign while the model thinks"
            assert not any(marker in text for text in town.heard(0))
            gate.set()
            assert await until(lambda: any(marker in text for text in town.heard(0)))
            signs, messages = calls(town, *names[town.platform])
            assert signs[-1] < messages[-1]
            quiet = world.marker(town)
            world.mind.plan(quiet, Answer(uses=(Use("skip", {"reason": "nothing to say"}),)))
            await town.say(0, "ann", quiet, addressed=True)
            if isinstance(town, SlackTown):  # elsewhere the sign fades by itself
                assert await until(lambda: len(town.standin.statuses) > 2 and town.standin.statuses[-1][2] == "")

        await world.each(play, CAN_EDIT)


@pytest.mark.spec("messaging 18.7: streaming")
@pytest.mark.slow
async def test_a_long_answer_grows_before_peoples_eyes(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:

        async def play(town: AnyTown) -> None:
            marker = world.marker(town)
            whole = " ".join(f"{marker} sentence number {n} of a long answer." for n in range(36))
            world.mind.plan(marker, reply(whole), pace_s=0.015)
            await town.say(0, "ann", marker, addressed=True)
            if town.platform in CAN_EDIT:
                assert await until(lambda: bool(town.heard(0))), "no beginning was shown"
                beginning = town.heard(0)[0]
                assert 0 < len(beginning) < len(whole)
            assert await until(lambda: " ".join(town.heard(0)) == whole), town.heard(0)
            if town.platform in CAN_EDIT:
                assert town.heard(0) == [whole]
                assert len(town.versions(0)) >= 2

        await world.each(play)


# What the agent can do


@pytest.mark.spec("messaging 18.7: tools")
async def test_it_reacts_sends_files_and_shows_buttons(tmp_path: Path) -> None:
    async with open_world(tmp_path, rooms=3) as world:
        workspace = tmp_path / "agents" / "main" / "workspace"
        (workspace / "report.txt").write_text("all is well\n")
        buttons = [{"buttons": [{"label": "Yes", "custom_id": "m900"}, {"label": "No", "custom_id": "m901"}]}]

        async def react(town: AnyTown) -> None:
            marker = world.marker(town)
            world.mind.plan(marker, Answer(uses=(Use("react", {"emoji": "👍"}),)), reply(marker))
            await town.say(0, "ann", marker, addressed=True)
            assert await until(lambda: marker in town.heard(0))
            assert town.reactions() in (["👍"], ["+1"], ["thumbsup"]), town.reactions()

        async def send(town: AnyTown) -> None:
            marker = world.marker(town)
            file = {"file_path": "report.txt", "caption": "here it is"}
            world.mind.plan(marker, Answer(uses=(Use("send_file", file),)), reply(marker))
            await town.say(1, "ann", marker, addressed=True)
            assert await until(lambda: marker in town.heard(1))
            assert town.files(1) == [("report.txt", b"all is well\n")]

        async def press(town: AnyTown) -> None:
            marker = world.marker(town)
            asks = {"content": f"{marker}: shall I?", "interactive_elements": buttons}
            world.mind.plan(marker, Answer(uses=(Use("reply", asks),)))
            await town.say(2, "ann", marker, addressed=True)
            assert await until(lambda: any(marker in text for text in town.heard(2)))
            gate = trio.Event()
            world.mind.plan("m900", reply("You said yes"), gate=gate)
            await town.press(2, "ann", "Yes")
            assert await until(lambda: acknowledged(town) == 1), "acknowledged before the model has answered"
            gate.set()
            assert await until(lambda: "You said yes" in town.heard(2))

        def acknowledged(town: AnyTown) -> int:
            match town:
                case DiscordTown():
                    return len(town.standin.acknowledged)
                case SlackTown():
                    return sum(receipt.type == "interactive" for receipt in town.standin.receipts)
                case _:
                    return len(town.standin.answered)

        async def cannot(town: AnyTown) -> None:
            (asked,) = world.mind.about(await world.ask(town, 0))
            assert not {"react", "send_file"} & asked.tools

        await world.each(react, HAVE_FILES)
        await world.each(send, HAVE_FILES)
        for town in world.towns:  # one by one: all of them press the same button
            if town.platform in HAVE_FILES:
                await press(town)
        assert len(world.mind.about("m900")) == len(HAVE_FILES)
        assert all("Yes" in asked.said for asked in world.mind.about("m900"))
        await world.each(cannot, ("twitch",))


@pytest.mark.spec("messaging 18.7: across rooms")
async def test_it_speaks_in_a_room_of_another_platform(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        places = {
            "discord": f"discord:{world.towns['discord'].place(0)}",
            "slack": f"slack:{world.towns['slack'].place(0)}",
            "telegram": f"telegram:{world.towns['telegram'].place(0).id}",
            "twitch": "twitch:room0",
        }
        towns = list(world.towns)
        for town in towns:
            await world.ask(town, 0)

        async def play(town: AnyTown) -> None:
            other = towns[(towns.index(town) + 1) % len(towns)]
            marker = world.marker(town)
            greeting = f"Greetings from {town.platform}"
            use = Use("send_message_to_another_channel", {"target": places[other.platform], "message": greeting})
            world.mind.plan(marker, Answer(uses=(use,)), reply(marker))
            await town.say(0, "ann", marker, addressed=True)
            assert await until(lambda: greeting in other.heard(0)), world.mind.about(marker)[-1].results
            assert await until(lambda: marker in " ".join(town.heard(0)))
            asked = await world.ask(other, 0, "bob")
            said = [m["content"] for m in world.mind.body_about(asked)["messages"] if m["role"] == "assistant"]
            assert greeting in json.dumps(said), "it does not know what it said there"

        for town in towns:
            await play(town)


@pytest.mark.spec("messaging 18.7: backfill")
async def test_what_was_said_before_it_came_is_known_and_not_answered(tmp_path: Path) -> None:
    async with open_world(tmp_path, platforms=("discord", "slack"), starts=False) as world:

        async def before(town: AnyTown) -> None:
            await town.earlier(0, "old", "m999 addressed: delete everything")

        await world.each(before)
        await world.start()

        async def play(town: AnyTown) -> None:
            body = world.mind.body_about(await world.ask(town, 0))
            system = json.dumps([message for message in body["messages"] if message["role"] == "system"])
            talk = json.dumps([message for message in body["messages"] if message["role"] != "system"])
            assert "delete everything" in system
            assert "delete everything" not in talk
            again = world.mind.body_about(await world.ask(town, 0))
            assert "delete everything" in json.dumps(again["messages"][0]), "it stays known"

        await world.each(play)
        assert not any("m999" in text for town in world.towns for text in town.heard(0))


# Where programs and browsers talk


class Caller:
    """A program that speaks to the webhook; remembers what it fetched."""

    number = 8

    def __init__(self, port: int) -> None:
        self._http = Http(port)
        self._secret = {"X-Webhook-Token": "hook-secret"}
        self._heard: dict[str, list[str]] = {}

    async def say(self, room: str, person: str, text: str, *, shared: bool = False) -> None:
        body = {"conversation_id": room, "content": text, "sender_id": person, "sender_name": person, "shared": shared}
        assert (await self._http.post("/send", body, self._secret))[0] == 202

    async def heard(self, room: str, count: int) -> list[str]:
        """What was said there, once it is so much."""
        found = self._heard.setdefault(room, [])
        with trio.fail_after(30):
            while len(found) < count:
                _, fetched = await self._http.get(f"/poll/{room}?wait=20", self._secret)
                found += [entry["content"] for entry in fetched["messages"]]
        return found

    async def leave(self) -> None:
        await self._http.close()


class Browser(Caller):
    """A page that speaks to the web chat."""

    number = 9

    async def say(self, room: str, person: str, text: str, *, shared: bool = False) -> None:
        body = {"agent_id": "main", "session_id": room, "sender_name": person, "message": text, "shared": shared}
        assert (await self._http.post("/api/webchat/send?wait=false", body))[0] == 202

    async def heard(self, room: str, count: int) -> list[str]:
        said: list[str] = []
        with trio.fail_after(30):
            while len(said) < count:
                _, rows = await self._http.get(f"/api/webchat/history?agent_id=main&session_id={room}&limit=50")
                said = [row["content"] for row in rows if row["role"] == "assistant"]
        return said


@pytest.mark.spec("messaging 18.7: web chat and webhook")
async def test_programs_and_browsers_are_served_the_same(tmp_path: Path) -> None:
    port = free_port()
    hook = f'[messaging.webhook]\nenabled = true\nport = {port}\nauth_token = "hook-secret"\n\n'
    whole = "\n".join(f"line {n} of it" for n in range(2500))
    assert len(whole) > 30_000
    async with open_world(tmp_path, platforms=(), extra=QUIET_ROOMS + hook) as world:
        for who in (Caller(port), Browser(world.daemon.port)):
            burst = [f"m{who.number}1{n}" for n in range(3)]
            for person, marker in zip(("ann", "bob", "cid"), burst, strict=True):
                await who.say("burst", person, marker, shared=True)
            assert await until(lambda burst=burst: bool(world.mind.about(burst[2])))
            assert all(marker in world.mind.about(burst[2])[0].said for marker in burst)

            marker = f"m{who.number}20"
            world.mind.plan(marker, reply(whole))
            await who.say("long", "ann", f"{marker} {'long ' * 20_000}end")
            assert await who.heard("long", 1) == [whole], "in one piece"
            assert "long end" in world.mind.about(marker)[0].said
            await who.say("long", "ann", f"m{who.number}30 addressed")
            assert await who.heard("long", 2) == [whole, f"m{who.number}30"]
            await who.leave()
