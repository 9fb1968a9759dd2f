"""What people say on Slack while nobody listens is heard when somebody listens again."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from spacebot.base.ids import ConversationId
from spacebot.messaging.adapter import LATE_S
from spacebot.messaging.asyncio_bridge import AsyncioHost, open_asyncio_host
from spacebot.messaging.messages import InboundMessage, Target
from spacebot.messaging.slack.adapter import SlackAdapter
from spacebot.messaging.slack.past import MISSED, ROOMS
from tests.fakes.recording_intake import RecordingIntake
from tests.messaging.slack_world import PATIENCE_S, account_for
from tests.stand_ins.slack import BOT, BOT_ID, SlackStandIn, open_slack


@dataclass
class Place:
    """A workspace where the bot was before, and is not connected now."""

    slack: SlackStandIn
    host: AsyncioHost

    def heard(self, channel: str, *, thread: str | None = None, ts: str | None = None) -> Target:
        """What an earlier life took last: a message of now, unless one is named."""
        ts = ts or self.slack.keep(channel, "U1", "heard before", thread=thread)
        data = {"team": "T1", "channel": channel, "ts": ts} | ({"thread_ts": thread} if thread else {})
        conversation = ConversationId(":".join(filter(None, ("slack", "T1", channel, thread))))
        return Target(conversation_id=conversation, data=data, message_id=ts)

    def say(self, channel: str, *texts: str) -> None:
        """Say something that Slack does not bring again."""
        for text in texts:
            self.slack.keep(channel, "U1", text)

    def gate(self, channel: str) -> trio.Event:
        """Slack tells what was said in a channel only when this is set."""
        return self.slack.gates.setdefault(("conversations.history", channel), trio.Event())

    def asked(self, channel: str) -> int:
        """How often it was asked what was said in a channel."""
        return sum(form["channel"] == channel for form in self.slack.called("conversations.history"))

    @asynccontextmanager
    async def connected(self, intake: RecordingIntake, gap_s: float = 60.0) -> AsyncIterator[None]:
        adapter = SlackAdapter(
            account_for(self.slack), key="slack", host=self.host, reconnects=(0.0, 0.01), retry_s=(0.0,), gap_s=gap_s
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(adapter.run, intake)
            yield
            nursery.cancel_scope.cancel()
        await self.slack.until(lambda: self.slack.sockets == 0)


@asynccontextmanager
async def open_place() -> AsyncIterator[Place]:
    with trio.fail_after(PATIENCE_S):
        async with open_slack() as slack, open_asyncio_host() as host:
            slack.add_channel("C1", "general")
            slack.add_channel("C2", "random")
            slack.add_user("U1", "ann", display="Ann", real="Ann Lee", is_admin=True)
            slack.add_channel("D1", user="U1")
            yield Place(slack, host)
            assert not slack.complaints, slack.complaints


def texts(messages: Sequence[InboundMessage]) -> list[str]:
    return [message.text for message in messages]


async def test_what_was_missed_reads_as_if_it_had_been_told() -> None:
    async with open_place() as place:
        slack = place.slack
        root = slack.keep("C1", "U1", "the plan")
        heard = [place.heard("C1", thread=root), place.heard("C1"), place.heard("D1")]
        told = RecordingIntake()
        async with place.connected(told):
            slack.post("C1", "U1", f"<@{BOT}> look at <#C2>", files=[slack.add_file("a.txt", "text/plain", b"abc")])
            slack.post("C1", "U1", "fine", thread=root)
            slack.post("C1", "U1", "and more")
            slack.post("D1", "U1", "psst")
            await told.received(4)
            await slack.until(lambda: len(slack.receipts) == 5)
        missed = RecordingIntake(heard_last=heard)
        async with place.connected(missed):
            await missed.received(4)

        def by_id(messages: Sequence[InboundMessage]) -> list[InboundMessage]:
            return sorted(messages, key=lambda message: str(message.platform_id))

        assert by_id(missed.messages) == by_id(told.messages)
        assert [one.text for one in missed.messages if one.room_ids == ("C1",)] == [
            "look at #random",
            "fine",
            "and more",
        ]
        assert not any(receipt.id == "" for receipt in slack.receipts)


async def test_own_bots_and_late_messages_are_left_out() -> None:
    async with open_place() as place:
        slack = place.slack
        slack.keep("C1", "U1", "late", ts=f"{time.time() - LATE_S - 60:.6f}")
        place.say("C1", "one")
        slack.keep("C1", BOT, "mine", bot_id=BOT_ID)
        slack.keep("C1", "U9", "beep", bot_id="B9")
        slack.keep("C1", "U1", "has joined", subtype="channel_join")
        place.say("C1", "two")
        command = place.heard("C1", ts="12.slash")  # the newest was a command, which has no place in the past
        intake = RecordingIntake(heard_last=[command])
        async with place.connected(intake):
            await intake.received(2)
            slack.post("C1", "U1", "now")
            assert texts(await intake.received(3)) == ["one", "two", "now"]


async def test_what_is_said_meanwhile_waits_in_its_channel_only() -> None:
    async with open_place() as place:
        slack = place.slack
        heard = place.heard("C1")
        place.say("C1", "missed 1", "missed 2")
        gate, intake = place.gate("C1"), RecordingIntake(heard_last=[heard])
        async with place.connected(intake):
            await slack.until(lambda: place.asked("C1") == 1)
            slack.post("C1", "U1", "live 1")
            slip = slack.post("C1", "U1", "slip")
            slack.edit("C1", slip, "live 2")
            slack.slash("C1", "U1", "/spacebot", "status")
            slack.post("C2", "U1", "elsewhere")
            assert texts(await intake.received(1)) == ["elsewhere"]
            gate.set()
            await intake.until(lambda: bool(intake.edits))
            assert texts(await intake.received(6)) == [
                "elsewhere",
                "missed 1",
                "missed 2",
                "live 1",
                "live 2",
                "/status",
            ]
            await slack.until(lambda: len(slack.receipts) == 5)
            slack.post("C1", "U1", "live 3")
            assert texts(await intake.received(7))[-1] == "live 3"


async def test_a_channel_that_cannot_be_asked_goes_on_without() -> None:
    async with open_place() as place:
        slack = place.slack
        heard = [place.heard("C2"), place.heard("C1")]
        place.say("C2", "unheard")
        place.say("C1", *map(str, range(MISSED + 1)))
        slack.channels["C2"].is_member = False
        intake = RecordingIntake(heard_last=heard, failures=1)
        async with place.connected(intake):
            await intake.received(MISSED)
            slack.post("C2", "U1", "live")
            assert texts(await intake.received(MISSED + 1)) == [*map(str, range(1, MISSED + 1)), "live"]


async def test_only_the_liveliest_conversations_are_asked() -> None:
    async with open_place() as place:
        slack = place.slack
        heard = [place.heard(slack.add_channel(f"C1{number}", "r")) for number in range(ROOMS)]
        heard.append(place.heard("C1"))
        place.say("C1", "too far down")
        place.say("C10", "missed")
        intake = RecordingIntake(heard_last=heard)
        async with place.connected(intake):
            await slack.until(lambda: len(slack.called("conversations.history")) == ROOMS)
            slack.post("C1", "U1", "live")
            assert set(texts(await intake.received(2))) == {"missed", "live"}
            assert place.asked("C1") == 0


@pytest.mark.parametrize(("gap_s", "asked"), [(0.0, 2), (60.0, 1)])
async def test_a_long_break_is_caught_up_with_and_a_short_one_is_not(gap_s: float, asked: int) -> None:
    async with open_place() as place:
        slack = place.slack
        intake = RecordingIntake(heard_last=[place.heard("C1")])
        async with place.connected(intake, gap_s):
            await slack.until(lambda: place.asked("C1") == 1)
            place.say("C1", "missed")
            slack.drop_sockets()
            await slack.until(lambda: slack.sockets_opened == 2 and slack.sockets == 1)
            slack.post("C1", "U1", "live")
            await intake.until(lambda: bool(intake.messages) and intake.messages[-1].text == "live")
            assert place.asked("C1") == asked
            assert texts(intake.messages) == (["missed", "live"] if asked == 2 else ["live"])
