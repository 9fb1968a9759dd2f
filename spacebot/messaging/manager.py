"""All adapters of the program: one supervisor each, started, stopped and swapped as the configuration says.

An adapter that fails is started again for ever, with growing pauses; one whose credentials are refused, slowly. Nobody
waits for an adapter: the program starts without it, and what is to be sent waits in the outbox.

Flow:    open_messaging -> reconcile -> run_service per account -> adapter.run -> intake
Floor:   messaging
Source:  messaging spec 3; pitfalls 8 to 11 and 35 of its section 19
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import DeliveryError, NotFoundError, SpacebotError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import MessageId, new_uuid
from spacebot.base.supervise import BackOff, run_service
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node, Tree, describe
from spacebot.config.messaging import AnyAccount, MessagingConfig
from spacebot.messaging.adapter import Adapter, Intake, Receipt, Traits
from spacebot.messaging.addresses import parse_address
from spacebot.messaging.asyncio_bridge import AsyncioHost, open_asyncio_host
from spacebot.messaging.messages import InboundMessage, MessageDeletion, MessageEdit, OutboundMessage, Target
from spacebot.messaging.registry import Seams
from spacebot.messaging.states import AdapterState, Connection

log = logging.getLogger(__name__)

BACK_OFF = BackOff(first_s=0.5, longest_s=60.0, permanent_s=300.0, steady_s=2.0)
READY_S = 60.0  # for an adapter to sign in

Build = Callable[[str, str, AnyAccount, Seams], Awaitable[Adapter]]


@dataclass(eq=False)
class _Slot:
    """One account and what became of it."""

    platform: str
    key: str
    account: AnyAccount
    since: datetime
    state: Connection = Connection.STARTING
    detail: str = ""
    who: str = ""
    attempts: int = 0
    next_attempt_at: datetime | None = None
    adapter: Adapter | None = None
    kept: Adapter | None = None  # of the last life
    hosts_lost: int = 0  # when it was made; one that lives in a loop that ended is made anew
    traits: Traits | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


@dataclass
class _Counts:
    received: int = 0
    sent: int = 0
    failed: int = 0


class Messaging:
    """The adapters of the program; see `open_messaging`. Fills the protocol `Courier`."""

    def __init__(
        self,
        config: Callable[[], MessagingConfig],
        *,
        tree: Tree,
        parent: Node,
        events: EventBus,
        clock: Clock,
        build: Build,
        back_off: BackOff = BACK_OFF,
    ) -> None:
        self._config = config
        self._tree = tree
        self._parent = parent
        self._events = events
        self._clock = clock
        self._build = build
        self._back_off = back_off
        self._slots: dict[str, _Slot] = {}
        self._counts: dict[str, _Counts] = {}
        self._changed = trio.Event()  # something connected, or was lost
        self._wanted = trio.Event()  # the configuration may have changed
        self._hosts = _Hosts()
        self.seams = Seams()  # what adapters need of the floors above; filled by the composition root

    def keys(self) -> Collection[str]:
        """All that the configuration names and does not disable."""
        return tuple(self._slots)

    def traits(self, key: str) -> Traits | None:
        """What an adapter can do; None when it is not configured or never came up yet."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        return slot.traits if slot.adapter is None else slot.adapter.traits

    def connected(self, key: str) -> Adapter | None:
        """An adapter, when it is connected now."""
        slot = self._slots.get(key)
        return slot.adapter if slot is not None and slot.state is Connection.CONNECTED else None

    async def wait_connected(self, key: str) -> Adapter:
        """An adapter, as soon as it is connected; that may be never."""
        while (adapter := self.connected(key)) is None:
            await self._changed.wait()
        return adapter

    def note_delivery(self, key: str, *, is_delivered: bool) -> None:
        """Count a message that went out, or that nobody will get."""
        counts = self._counts.setdefault(key, _Counts())
        counts.sent += is_delivered
        counts.failed += not is_delivered

    def streams(self, key: str) -> bool:
        """Whether the owner wants answers to be shown there while they grow."""
        slot = self._slots.get(key)
        return slot is not None and slot.account.streaming

    def states(self) -> Sequence[AdapterState]:
        """How every account stands, in the order of the configuration."""
        found = []
        for platform, key, _ in self._config().accounts():
            slot, counts = self._slots.get(key), self._counts.get(key, _Counts())
            state = AdapterState(
                key=key,
                platform=platform,
                state=Connection.DISABLED if slot is None else slot.state,
                received=counts.received,
                sent=counts.sent,
                failed=counts.failed,
            )
            if slot is not None:
                state = replace(
                    state,
                    detail=slot.detail,
                    who=slot.who,
                    since=slot.since,
                    attempts=slot.attempts,
                    next_attempt_at=slot.next_attempt_at,
                )
            found.append(state)
        return found

    async def probe(self, key: str) -> str:
        """Ask a platform whether all is well. Errors: NotFoundError, DeliveryError."""
        return await self._must_be_connected(key).check()

    async def send_test(self, address: str, text: str) -> str:
        """Send a line to `adapter:target`, past the log; returns the place's name.

        Errors: DeliveryError, RefusedError, NotFoundError.
        """
        key, target = parse_address(address, self.keys())
        adapter = self._must_be_connected(key)
        place = await adapter.resolve(target)

        async def note_sent(platform_id: str) -> None:
            await trio.lowlevel.checkpoint()

        await adapter.send(
            Target(conversation_id=place.conversation_id, is_direct=place.is_direct, data=place.data),
            OutboundMessage(id=MessageId(new_uuid()), text=text),
            note_sent,
        )
        return place.name

    def _must_be_connected(self, key: str) -> Adapter:
        adapter = self.connected(key)
        if adapter is not None:
            return adapter
        slot = self._slots.get(key)
        if slot is None:
            known = ", ".join(self._slots) or "none"
            raise NotFoundError(f"there is no adapter {key!r} in service; there are: {known}")
        raise DeliveryError(f"{key} is not connected: {slot.detail or slot.state}", is_permanent=False)

    def reconcile(self) -> None:
        """Have a look at the configuration soon."""
        self._wanted.set()

    async def run(self, intake: Intake) -> None:
        """Run all adapters until cancelled; those of accounts that changed are swapped."""
        scope = trio.CancelScope(shield=True)  # adapters say goodbye through the loop, so it outlives them
        async with trio.open_nursery() as hosts:
            hosts.start_soon(self._hosts.run, scope)
            try:
                async with trio.open_nursery() as nursery:
                    while True:
                        self._wanted = trio.Event()
                        await self._reconcile(nursery, intake)
                        await self._wanted.wait()
            finally:
                scope.cancel()

    async def _reconcile(self, nursery: trio.Nursery, intake: Intake) -> None:
        wanted = {key: (platform, account) for platform, key, account in self._config().accounts() if account.enabled}
        gone = [slot for key, slot in self._slots.items() if key not in wanted or wanted[key][1] != slot.account]
        for slot in gone:
            slot.scope.cancel()
        for slot in gone:
            await slot.ended.wait()
            self._slots.pop(slot.key)
        for key, (platform, account) in wanted.items():
            if key not in self._slots:
                slot = _Slot(platform, key, account, since=self._clock.now())
                self._slots[key] = slot
                nursery.start_soon(self._supervise, slot, intake)
        self._slots = {key: self._slots[key] for key in wanted}

    async def _supervise(self, slot: _Slot, intake: Intake) -> None:
        try:
            with slot.scope:
                await run_service(
                    self._tree,
                    f"adapter:{slot.key}",
                    partial(self._connect, slot, intake),
                    parent=self._parent,
                    description=slot.key,
                    back_off=self._back_off,
                    on_failure=partial(self._failed, slot),
                )
        finally:
            self._turn(slot, Connection.STOPPED, "")
            slot.ended.set()

    async def _connect(self, slot: _Slot, intake: Intake, node: Node) -> None:
        """One life of an adapter: from its making to the end of its stream."""
        self._turn(slot, Connection.STARTING, "signing in")
        adapter = slot.kept
        if adapter is None or slot.hosts_lost != self._hosts.lost:
            slot.hosts_lost = self._hosts.lost
            seams = replace(self.seams, host=self._hosts.current)
            adapter = await self._build(slot.platform, slot.key, slot.account, seams)
        slot.traits, slot.kept = adapter.traits, None
        try:
            async with trio.open_nursery() as nursery:
                who = None
                with trio.move_on_after(READY_S):
                    who = await nursery.start(adapter.run, _Counted(self, slot.key, intake, node))
                if who is None:
                    raise DeliveryError(
                        f"{slot.key} did not sign in within {READY_S:.0f} s; is the platform reachable from here?",
                        is_permanent=False,
                    )
                slot.adapter, slot.who, slot.attempts, slot.next_attempt_at = adapter, who, 0, None
                self._turn(slot, Connection.CONNECTED, "")
                node.progress(f"connected as {who}")
        except BaseExceptionGroup as group:
            if isinstance(error := _first(group), DeliveryError):
                slot.kept = adapter  # it knows what its last life learned; one that broke is made anew
            raise error from group
        finally:
            slot.adapter = None
            if slot.state is Connection.CONNECTED:
                self._turn(slot, Connection.STARTING, "the connection ended")
        slot.kept = adapter
        raise DeliveryError("the connection ended", is_permanent=False)

    def _failed(self, slot: _Slot, error: BaseException, failures: int, pause_s: float) -> None:
        slot.attempts = failures
        slot.next_attempt_at = self._clock.now() + timedelta(seconds=pause_s)
        self._turn(slot, Connection.RETRYING, describe(error))

    def _turn(self, slot: _Slot, state: Connection, detail: str) -> None:
        if state is not slot.state:
            slot.since = self._clock.now()
            self._events.emit(EventKind.ADAPTER_STATE, adapter=slot.key, state=str(state), detail=detail)
            level = logging.INFO if state in (Connection.CONNECTED, Connection.STOPPED) else logging.DEBUG
            log.log(level, "adapter", extra=kv(adapter=slot.key, state=str(state), who=slot.who))
        slot.state, slot.detail = state, detail
        self._changed.set()
        self._changed = trio.Event()

    def note_received(self, key: str) -> None:
        """Count a message that came in."""
        self._counts.setdefault(key, _Counts()).received += 1


class _Counted:
    """The intake as one adapter sees it: counts, and shows signs of life."""

    def __init__(self, messaging: Messaging, key: str, intake: Intake, node: Node) -> None:
        self._messaging = messaging
        self._key = key
        self._intake = intake
        self._node = node

    async def take(self, message: InboundMessage) -> Receipt:
        if message.adapter is None:
            message = replace(message, adapter=self._key)
        receipt = await self._intake.take(message)
        if receipt in (Receipt.ACCEPTED, Receipt.OBSERVED):
            self._messaging.note_received(self._key)
        self._node.progress()
        return receipt

    async def edit(self, edit: MessageEdit) -> None:
        await self._intake.edit(edit)

    async def delete(self, deletion: MessageDeletion) -> None:
        await self._intake.delete(deletion)

    async def last_heard(self, adapter_key: str) -> Sequence[Target]:
        return await self._intake.last_heard(adapter_key)

    def is_admitted(self, message: InboundMessage) -> bool:
        return self._intake.is_admitted(message if message.adapter else replace(message, adapter=self._key))


class _Hosts:
    """The asyncio loop, opened when the first adapter needs it, and anew when a library ended it."""

    def __init__(self) -> None:
        self._host: AsyncioHost | None = None
        self._wanted = trio.Event()
        self._opened = trio.Event()
        self.lost = 0  # loops that have ended

    async def current(self) -> AsyncioHost:
        """The loop that runs."""
        while self._host is None:
            self._wanted.set()
            await self._opened.wait()
        return self._host

    async def run(self, scope: trio.CancelScope) -> None:
        """Own the loop until the scope is cancelled."""
        with scope:
            while True:
                await self._wanted.wait()
                async with open_asyncio_host() as host:
                    self._host = host
                    self._opened.set()
                    self._opened = trio.Event()
                    try:
                        await host.ended.wait()
                        log.error("asyncio loop ended; it is opened anew")
                    finally:
                        self._host = None
                        self.lost += 1
                self._wanted = trio.Event()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that ended an adapter: our own kind before others."""
    found: list[BaseException] = []
    left: list[BaseException] = [group]
    while left:
        error = left.pop()
        if isinstance(error, BaseExceptionGroup):
            left.extend(reversed(error.exceptions))
        else:
            found.append(error)
    if any(isinstance(error, KeyboardInterrupt | SystemExit) for error in found):
        return group
    return next((error for error in found if isinstance(error, SpacebotError)), found[0])
