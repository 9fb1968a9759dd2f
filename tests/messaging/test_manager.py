"""One supervisor per adapter: they start without holding anybody up, come back, and follow the configuration."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from spacebot.base.clock import Clock
from spacebot.base.errors import DeliveryError, NotFoundError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import ConversationId
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.messaging import AnyAccount, MessagingConfig, TelegramAccount, TwitchAccount
from spacebot.messaging.adapter import Destination, Intake
from spacebot.messaging.manager import BACK_OFF, READY_S, Messaging
from spacebot.messaging.registry import Seams
from spacebot.messaging.states import Connection
from tests.fakes.fake_platform import FakePlatform
from tests.fakes.recording_intake import RecordingIntake


@dataclass
class Account(FakePlatform):
    """An adapter whose lives the test decides: each life takes the next of `lives`."""

    lives: list[Exception | str] = field(default_factory=list)  # an error, or "stay", "hang", "end"
    starts: int = 0
    ended: int = 0
    cut: trio.Event = field(default_factory=trio.Event)
    account: AnyAccount | None = None
    intake: Intake | None = None

    async def run(self, intake: Intake, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        self.intake = intake
        self.starts += 1
        life = self.lives.pop(0) if self.lives else "stay"
        try:
            if isinstance(life, Exception):
                raise life
            if life == "hang":
                await trio.sleep_forever()
            task_status.started("@bot")
            if life == "end":
                return
            self.cut = trio.Event()
            await self.cut.wait()
        finally:
            self.ended += 1


@dataclass
class Running:
    """A manager at work."""

    messaging: Messaging
    accounts: dict[str, Account]
    intake: RecordingIntake
    config: list[MessagingConfig]
    events: list[tuple[str, str]]
    tree: Tree

    def state(self, key: str) -> Any:
        return next(state for state in self.messaging.states() if state.key == key)

    async def reconcile(self, config: MessagingConfig) -> None:
        self.config[0] = config
        self.messaging.reconcile()
        await wait_all_tasks_blocked()


def telegram(token: str = "1:a", **fields: Any) -> TelegramAccount:
    return TelegramAccount(token=token, **fields)


def both(token: str = "1:a") -> MessagingConfig:
    twitch = TwitchAccount(username="bot", oauth_token="t")
    return MessagingConfig(telegram=(telegram(token),), twitch=(twitch,))


@asynccontextmanager
async def running(
    config: MessagingConfig, prepare: Callable[[str], list[Exception | str]] = lambda key: []
) -> AsyncIterator[Running]:
    tree, bus = Tree(), EventBus()
    parent = tree.add(NodeKind.DAEMON, "test")
    accounts: dict[str, Account] = {}
    configs = [config]

    async def build(platform: str, key: str, account: AnyAccount, seams: Seams) -> Account:
        await trio.lowlevel.checkpoint()
        known = accounts.get(key)
        if known is None:
            known = accounts[key] = Account(key=key, platform=platform, lives=prepare(key))
        known.account = account
        return known

    messaging = Messaging(lambda: configs[0], tree=tree, parent=parent, events=bus, clock=Clock(), build=build)  # type: ignore[arg-type]
    intake = RecordingIntake()
    changes: list[tuple[str, str]] = []
    with bus.subscribe(frozenset({EventKind.ADAPTER_STATE})) as subscription:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for event in subscription:
                    key, state = event.fields["adapter"], event.fields["state"]
                    changes.append((str(key), str(state)))

            nursery.start_soon(watch)
            nursery.start_soon(messaging.run, intake)
            await wait_all_tasks_blocked()
            yield Running(messaging, accounts, intake, configs, changes, tree)
            nursery.cancel_scope.cancel()
    assert all(account.ended == account.starts for account in accounts.values())
    assert not list(tree.of_kind(NodeKind.SERVICE))


async def test_connected_adapters_are_shown_and_counted(autojump_clock: MockClock) -> None:
    async with running(both()) as running_:
        state = running_.state("telegram")
        assert (state.state, state.who, state.detail) == (Connection.CONNECTED, "@bot", "")
        account = running_.accounts["telegram"]
        assert account.intake is not None
        await account.intake.take(account.message("Ann", "hi"))
        await account.intake.take(account.message("Ann", "hi", platform_id="m1"))
        await account.intake.take(account.message("Ann", "hi", platform_id="m1"))
        running_.messaging.note_delivery("telegram", is_delivered=True)
        running_.messaging.note_delivery("telegram", is_delivered=False)
        state = running_.state("telegram")
        assert (state.received, state.sent, state.failed) == (2, 1, 1)
        assert running_.messaging.connected("telegram") is account


@pytest.mark.spec("D-8")
async def test_one_that_fails_is_tried_for_ever_and_holds_up_nobody(autojump_clock: MockClock) -> None:
    def lives(key: str) -> list[Exception | str]:
        return [DeliveryError("no network", is_permanent=False) for _ in range(40)] if key == "telegram" else []

    async with running(both(), lives) as running_:
        state = running_.state("telegram")
        assert (state.state, state.detail, state.attempts) == (Connection.RETRYING, "no network", 1)
        assert state.next_attempt_at is not None
        assert running_.messaging.connected("telegram") is None
        assert running_.state("twitch").state is Connection.CONNECTED
        adapter = await running_.messaging.wait_connected("telegram")
        assert adapter is running_.accounts["telegram"]
        assert running_.accounts["telegram"].starts == 41
        assert running_.state("telegram").attempts == 0


async def test_refused_credentials_are_tried_slowly(autojump_clock: MockClock) -> None:
    refused = DeliveryError("the token was refused", is_permanent=True)
    async with running(both(), lambda key: [refused] if key == "telegram" else []) as running_:
        await trio.sleep(BACK_OFF.permanent_s - 1)
        assert running_.accounts["telegram"].starts == 1
        assert "refused" in running_.state("telegram").detail
        await trio.sleep(2)
        assert running_.accounts["telegram"].starts == 2


@pytest.mark.spec("D-8")
async def test_a_stream_that_ends_is_started_again(autojump_clock: MockClock) -> None:
    async with running(both(), lambda key: ["end", "stay"] if key == "telegram" else []) as running_:
        await trio.sleep(5)
        assert running_.accounts["telegram"].starts == 2
        assert running_.state("telegram").state is Connection.CONNECTED
        mine = [state for key, state in running_.events if key == "telegram"]
        assert mine == ["connected", "starting", "retrying", "starting", "connected"]


async def test_one_that_never_signs_in_is_started_again(autojump_clock: MockClock) -> None:
    async with running(both(), lambda key: ["hang"] if key == "telegram" else []) as running_:
        assert running_.state("telegram").state is Connection.STARTING
        await trio.sleep(READY_S + 0.2)
        assert "did not sign in" in running_.state("telegram").detail
        await trio.sleep(2)
        assert running_.state("telegram").state is Connection.CONNECTED


@pytest.mark.spec("D-9", "D-10")
async def test_a_swap_that_fails_says_why_and_freezes_nobody(autojump_clock: MockClock) -> None:
    address = "https://api.telegram.org/bot123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc/getMe"
    refused = DeliveryError(f"GET {address}: 401", is_permanent=False)
    lives: list[Exception | str] = ["stay", "hang", refused]
    async with running(both(), lambda key: lives if key == "telegram" else []) as running_:
        await running_.reconcile(both("2:b"))
        assert running_.state("telegram").state is Connection.STARTING
        assert await running_.messaging.probe("twitch") == "all is well"
        await running_.reconcile(MessagingConfig(telegram=(telegram("2:b"),)))  # others come and go meanwhile
        assert running_.accounts["twitch"].ended == 1
        assert running_.accounts["telegram"].starts == 2
        await trio.sleep(READY_S + BACK_OFF.first_s + 0.2)
        state = running_.state("telegram")
        assert state.state is Connection.RETRYING
        assert "401" in state.detail
        assert "AAEhBO" not in state.detail
        await trio.sleep(5)
        assert running_.state("telegram").state is Connection.CONNECTED


@pytest.mark.spec("C-12")
async def test_a_changed_account_is_swapped_and_others_are_left_alone(autojump_clock: MockClock) -> None:
    async with running(both()) as running_:
        await running_.reconcile(both("2:b"))
        mine = running_.accounts["telegram"]
        assert (mine.starts, mine.ended) == (2, 1)
        assert isinstance(mine.account, TelegramAccount)
        assert mine.account.token.get_secret_value() == "2:b"
        assert running_.accounts["twitch"].starts == 1
        await running_.reconcile(both("2:b"))  # nothing changed
        assert mine.starts == 2


@pytest.mark.spec("D-8", "C-12")
async def test_a_removed_or_disabled_account_stops_and_is_not_revived(autojump_clock: MockClock) -> None:
    async with running(both(), lambda key: [OSError("x")] if key == "telegram" else []) as running_:
        await running_.reconcile(MessagingConfig(telegram=(telegram(enabled=False),)))
        await trio.sleep(1000)
        assert running_.accounts["telegram"].starts == 1
        assert running_.accounts["twitch"].ended == 1
        assert [(state.key, state.state) for state in running_.messaging.states()] == [
            ("telegram", Connection.DISABLED)
        ]
        await running_.reconcile(both())
        assert running_.state("telegram").state is Connection.CONNECTED


async def test_instances_of_a_platform_live_side_by_side(autojump_clock: MockClock) -> None:
    config = MessagingConfig(telegram=(telegram(), telegram("2:b", name="ops")))
    async with running(config) as running_:
        assert [state.key for state in running_.messaging.states()] == ["telegram", "telegram:ops"]
        await running_.reconcile(MessagingConfig(telegram=(telegram(),)))
        assert running_.accounts["telegram:ops"].ended == 1
        assert running_.accounts["telegram"].starts == 1


async def test_a_probe_and_a_test_message_say_what_came_of_them(autojump_clock: MockClock) -> None:
    async with running(both()) as running_:
        account = running_.accounts["telegram"]
        chat = ConversationId("telegram:42")
        account.places["42"] = Destination(conversation_id=chat, name="the crew", is_direct=False, data={})
        assert await running_.messaging.probe("telegram") == "all is well"
        assert await running_.messaging.send_test("telegram:42", "hello") == "the crew"
        assert [(sent.target.conversation_id, sent.text) for sent in account.sent] == [(chat, "hello")]
        with pytest.raises(NotFoundError, match="no adapter 'slack' in service; there are: telegram, twitch"):
            await running_.messaging.probe("slack")
        with pytest.raises(NotFoundError):
            await running_.messaging.send_test("moon:42", "hello")


@pytest.mark.spec("D-35")
async def test_a_broken_adapter_is_an_error_in_the_status_not_an_end(autojump_clock: MockClock) -> None:
    async with running(both(), lambda key: [KeyError("bug")] if key == "telegram" else []) as running_:
        assert "KeyError" in running_.state("telegram").detail
        await trio.sleep(2)
        assert running_.state("telegram").state is Connection.CONNECTED
