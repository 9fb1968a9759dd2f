"""The only door to asyncio libraries: one loop in one thread, entered from Trio.

A thread, and not a loop inside of Trio's: an exception that a library leaves in one of its callbacks
stays in that loop's log instead of ending the program, and a library that blocks its loop blocks
nobody else.

Across the door go plain values only. Outwards: `AsyncioHost.run` awaits a coroutine function over
there, and cancelling it here cancels it there. Inwards: an `Inlet` takes what library callbacks hand
over; it never waits and never raises.

Flow:    open_asyncio_host -> host.run(coroutine function, ...) | host.inlet(send) <- callback
Floor:   messaging
Source:  measurements of three bridges with the real libraries; the thread was the one without loss
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, NoReturn, TypeVar, TypeVarTuple, cast

import outcome
import trio

from spacebot.base.errors import ExternalError
from spacebot.base.telemetry import kv

log = logging.getLogger(__name__)

CANCEL_S = 10.0  # for a cancelled task to clean up (a chat gateway says goodbye); then it is left to the shutdown
SHUTDOWN_S = 5.0  # for all tasks that are left at the end, and again for the thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Inlet(Generic[T]):
    """The way from a library's callback into a Trio memory channel.

    `put` may be called from any thread. What finds the channel full or closed is dropped and counted: an
    exception here would end Trio itself.
    """

    def __init__(self, send: trio.MemorySendChannel[T], token: trio.lowlevel.TrioToken) -> None:
        self._send = send
        self._token = token
        self.dropped = 0

    def put(self, value: T) -> None:
        """Hand a value over; never waits, never raises."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._deliver, value)

    def _deliver(self, value: T) -> None:
        try:
            self._send.send_nowait(value)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.dropped += 1
            log.warning("inbound value dropped", extra=kv(reason=type(error).__name__, dropped=self.dropped))


class AsyncioHost:
    """A running asyncio loop in a thread of its own. Open it with `open_asyncio_host`."""

    def __init__(self, *, cancel_s: float, shutdown_s: float) -> None:
        self._cancel_s = cancel_s
        self._shutdown_s = shutdown_s
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._calls: set[_Call[Any]] = set()  # touched on the Trio side only
        self.ended = trio.Event()
        """Set when the loop's thread is over, whoever ended it."""

    def inlet(self, send: trio.MemorySendChannel[T]) -> Inlet[T]:
        """A way for callbacks of a library into a memory channel. The channel stays the caller's."""
        return Inlet(send, self._token)

    async def run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await `function(*args)` on the asyncio side.

        Errors: those of the function arrive as themselves. ExternalError when its task was cancelled over
            there, tried to end the program, or when the host is closed.
        Cancel: the asyncio task is cancelled and its cleaning up awaited, at most `CANCEL_S` seconds. If it
            finishes with a result or an error nevertheless, that is what the caller gets.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        call: _Call[T] = _Call(self._loop, self._token, self._cancel_s)
        self._calls.add(call)
        try:
            return await call.run(function, *args)
        finally:
            self._calls.discard(call)

    def main(self) -> None:
        """What the thread runs: the loop, from the start to the last task's end."""
        try:
            self._loop.run_until_complete(self._stop.wait())
        except BaseException as error:  # boundary: a stray task of a library may even raise SystemExit
            log.error("asyncio loop ended by a library", exc_info=error)
        try:
            self._loop.run_until_complete(self._sweep())
        except BaseException as error:  # boundary: as above
            log.error("asyncio loop not swept", exc_info=error)
        finally:
            self._loop.close()
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end)

    def request_stop(self) -> None:
        """Let the loop end; the tasks that are left are cancelled."""
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stop.set)

    def _end(self) -> None:
        self.ended.set()
        for call in tuple(self._calls):  # the loop went before it looked at them
            call.wake(outcome.Error(ExternalError("the asyncio host ended before the call was done")))

    async def _sweep(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            log.debug("asyncio tasks cancelled at the end", extra=kv(tasks=len(tasks)))
            done, left = await asyncio.wait(tasks, timeout=self._shutdown_s)
            for task in done:
                if not task.cancelled():
                    task.exception()  # looked at, or asyncio reports it when the task is collected
            if left:
                log.warning("asyncio tasks refused to end", extra=kv(tasks=len(left)))
        await self._loop.shutdown_asyncgens()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._shutdown_s):
                await self._loop.shutdown_default_executor()


class _Call(Generic[T]):
    """One `AsyncioHost.run`: a Trio task that waits for an asyncio task.

    Each side only schedules on the other. The Trio task is woken exactly once: by the end of the asyncio
    task, by the end of patience with it, or because the loop is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, token: trio.lowlevel.TrioToken, cancel_s: float) -> None:
        self._loop = loop
        self._token = token
        self._cancel_s = cancel_s
        self._waiting = trio.lowlevel.current_task()
        self._task: asyncio.Task[T] | None = None
        self._raise_cancel: Callable[[], NoReturn] | None = None
        self._is_answered = False  # touched on the asyncio side only
        self._is_awake = False  # touched on the Trio side only

    async def run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        async def guarded() -> T:
            try:
                return await function(*args)
            except (SystemExit, KeyboardInterrupt, trio.Cancelled) as error:
                raise ExternalError(f"a library tried to end the program ({type(error).__name__})") from error

        def start() -> None:
            self._task = self._loop.create_task(guarded())
            self._task.add_done_callback(self._finished)

        try:
            self._loop.call_soon_threadsafe(start)
        except RuntimeError as error:
            raise ExternalError("the asyncio host is closed; it ends with the program") from error
        return cast(T, await trio.lowlevel.wait_task_rescheduled(self._abort))

    def _abort(self, raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        self._raise_cancel = raise_cancel
        with suppress(RuntimeError):  # the loop just closed, so the answer is under way
            self._loop.call_soon_threadsafe(self._cancel)
        return trio.lowlevel.Abort.FAILED

    def _cancel(self) -> None:
        assert self._task is not None  # scheduled before, and the loop keeps the order
        if not self._task.done():
            self._task.cancel()
            self._loop.call_later(self._cancel_s, self._give_up)

    def _give_up(self) -> None:
        if not self._is_answered:
            log.warning("asyncio task refused to be cancelled; left to the shutdown")
            self._answer(outcome.Error(asyncio.CancelledError()))

    def _finished(self, task: "asyncio.Task[T]") -> None:
        result: outcome.Outcome[T]
        if task.cancelled():
            result = outcome.Error(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            result = outcome.Error(error)
        else:
            result = outcome.Value(task.result())
        if not self._is_answered:
            self._answer(result)

    def _answer(self, result: "outcome.Outcome[T]") -> None:
        self._is_answered = True
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.wake, result)

    def wake(self, result: "outcome.Outcome[T]") -> None:
        """Let the Trio task go on; a second answer is ignored."""
        if self._is_awake:
            return
        self._is_awake = True
        if isinstance(result, outcome.Error) and isinstance(result.error, asyncio.CancelledError):
            if self._raise_cancel is not None:
                result = outcome.capture(self._raise_cancel)
            else:
                result = outcome.Error(ExternalError("the asyncio task was cancelled from its own side"))
        trio.lowlevel.reschedule(self._waiting, result)


@asynccontextmanager
async def open_asyncio_host(
    *, cancel_s: float = CANCEL_S, shutdown_s: float = SHUTDOWN_S
) -> AsyncIterator[AsyncioHost]:
    """Run an asyncio loop in a thread of its own while the block runs.

    Args:
        cancel_s: seconds that a cancelled call waits for its task.
        shutdown_s: seconds for tasks that are left over at the end.

    Owns: loop and thread; ends both, also when cancelled, in at most about twice `shutdown_s`. A thread that a
        library blocks beyond that is given up (it cannot hold up the exit of the program).
    """
    host = AsyncioHost(cancel_s=cancel_s, shutdown_s=shutdown_s)
    thread = threading.Thread(target=host.main, name="asyncio-host", daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.request_stop()
        with trio.CancelScope(shield=True):
            # Waits in real seconds, whatever clock drives Trio: the other side does so too.
            await trio.to_thread.run_sync(thread.join, 3 * shutdown_s, limiter=trio.CapacityLimiter(1))
        if thread.is_alive():
            log.error("asyncio thread did not end; a library blocks it")
