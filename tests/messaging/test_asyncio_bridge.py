"""The bridge between Trio and asyncio libraries: real threads, so real clocks, but nothing waits for time to pass."""

import asyncio
import threading

import pytest
import trio

from spacebot.base.errors import ExternalError
from spacebot.messaging.asyncio_bridge import open_asyncio_host
from tests.conftest import Logs


class Odd(Exception):
    """An error with an attribute, as libraries have them."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


async def on_other_side() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


async def test_a_call_runs_in_the_asyncio_thread_and_returns_its_value() -> None:
    async with open_asyncio_host() as host:
        assert await host.run(on_other_side) == "asyncio-host"
    assert not any(thread.name == "asyncio-host" for thread in threading.enumerate())


async def test_many_calls_run_at_once() -> None:
    started = 0
    everybody = asyncio.Event()

    async def meet(number: int) -> int:
        nonlocal started
        started += 1
        if started == 50:
            everybody.set()
        await everybody.wait()
        return number

    results: list[int] = []

    async def call(number: int) -> None:
        results.append(await host.run(meet, number))

    with trio.fail_after(5):
        async with open_asyncio_host() as host, trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(call, number)
    assert sorted(results) == list(range(50))


async def test_an_error_arrives_as_itself() -> None:
    error = Odd(7)

    async def fail() -> None:
        raise error

    async with open_asyncio_host() as host:
        with pytest.raises(Odd) as caught:
            await host.run(fail)
    assert caught.value is error


async def test_a_function_that_raises_before_its_first_await_does_not_hang() -> None:
    def fail() -> "asyncio.Future[None]":
        raise Odd(1)

    async with open_asyncio_host() as host:
        with trio.fail_after(5), pytest.raises(Odd):
            await host.run(fail)


async def test_an_attempt_to_end_the_program_becomes_an_error() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async with open_asyncio_host() as host:
        with pytest.raises(ExternalError):
            await host.run(leave)
        assert await host.run(on_other_side) == "asyncio-host"


async def test_a_task_cancelled_from_its_own_side_is_an_error_not_a_cancellation() -> None:
    async def give_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with open_asyncio_host() as host:
        with pytest.raises(ExternalError):
            await host.run(give_up)


async def test_cancelled_before_the_start_the_function_is_not_called() -> None:
    calls: list[str] = []

    async def note() -> None:
        calls.append("called")

    async with open_asyncio_host() as host:
        with trio.CancelScope() as scope:
            scope.cancel()
            await host.run(note)
        assert scope.cancelled_caught
        await host.run(on_other_side)
    assert calls == []


async def test_cancelled_in_the_middle_the_task_cleans_up_before_the_cancellation_passes() -> None:
    events: list[str] = []
    async with open_asyncio_host() as host:
        reached = trio.Event()
        token = trio.lowlevel.current_trio_token()

        async def work() -> None:
            try:
                token.run_sync_soon(reached.set)
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                events.append("cleaned up")
                raise

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.run, work)
                await reached.wait()
                nursery.cancel_scope.cancel()
    assert events == ["cleaned up"]


async def test_an_error_of_the_clean_up_is_not_lost() -> None:
    async with open_asyncio_host() as host:
        reached = trio.Event()
        token = trio.lowlevel.current_trio_token()

        async def work() -> None:
            try:
                token.run_sync_soon(reached.set)
                await asyncio.sleep(3600)
            finally:
                raise Odd(9)

        async def call(scope: trio.CancelScope) -> None:
            with scope, pytest.raises(Odd):
                await host.run(work)
            seen.append("error")

        seen: list[str] = []
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(call, scope)
                await reached.wait()
                scope.cancel()
        assert seen == ["error"]


async def test_a_task_that_refuses_to_be_cancelled_holds_nobody_for_ever() -> None:
    async with open_asyncio_host(cancel_s=0.05, shutdown_s=0.05) as host:
        reached = trio.Event()
        token = trio.lowlevel.current_trio_token()
        may_end = asyncio.Event()

        async def stubborn() -> None:
            token.run_sync_soon(reached.set)
            while not may_end.is_set():
                try:
                    await may_end.wait()
                except asyncio.CancelledError:
                    continue

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.run, stubborn)
                await reached.wait()
                nursery.cancel_scope.cancel()

        async def allow() -> None:
            may_end.set()

        assert await host.run(on_other_side) == "asyncio-host"
        await host.run(allow)


async def test_a_task_that_finishes_although_cancelled_delivers_its_value() -> None:
    values: list[str] = []
    async with open_asyncio_host() as host:
        reached = trio.Event()
        token = trio.lowlevel.current_trio_token()

        async def work() -> str:
            try:
                token.run_sync_soon(reached.set)
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
            return "sent"

        async def call() -> None:
            values.append(await host.run(work))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await reached.wait()
                nursery.cancel_scope.cancel()
    assert values == ["sent"]


async def test_leaked_tasks_are_cancelled_at_the_end() -> None:
    ended = threading.Event()

    async def leak() -> "asyncio.Task[None]":
        async def background() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.set()

        task = asyncio.create_task(background())
        await asyncio.sleep(0)
        return task

    async with open_asyncio_host() as host:
        task = await host.run(leak)
        assert not task.done()
    assert ended.is_set()
    assert task.cancelled()


async def test_the_host_closes_in_a_cancelled_scope_and_refuses_later_calls() -> None:
    with trio.fail_after(5):
        with trio.CancelScope() as scope:
            async with open_asyncio_host() as host:
                scope.cancel()
                await trio.sleep_forever()
        with pytest.raises(ExternalError):
            await host.run(on_other_side)


async def test_a_blocked_loop_stalls_neither_trio_nor_the_shutdown() -> None:
    release = threading.Event()

    async def block() -> None:
        release.wait(5)  # what a library does that looks up names or parses on its loop

    async with open_asyncio_host(cancel_s=0.05, shutdown_s=0.02) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.run, block)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            release.set()
    with trio.fail_after(5):
        await host.ended.wait()


async def test_a_stray_task_that_ends_the_loop_fails_the_waiting_calls(logs: Logs) -> None:
    logs.expect("asyncio loop ended by a library")

    async def bomb() -> None:
        async def explode() -> None:
            raise SystemExit(1)

        asyncio.get_running_loop().call_soon(lambda: keep.append(asyncio.ensure_future(explode())))
        await asyncio.sleep(3600)

    keep: list[asyncio.Future[None]] = []
    async with open_asyncio_host() as host:
        with trio.fail_after(5), pytest.raises(ExternalError):
            await host.run(bomb)
        with trio.fail_after(5):
            await host.ended.wait()
        with pytest.raises(ExternalError):
            await host.run(on_other_side)
    with pytest.raises(SystemExit):
        keep[0].result()


async def test_the_inlet_delivers_in_order() -> None:
    send, receive = trio.open_memory_channel[int](10)
    async with open_asyncio_host() as host:
        inlet = host.inlet(send)

        async def callback() -> None:
            for number in range(5):
                inlet.put(number)

        await host.run(callback)
        with trio.fail_after(5):
            assert [await receive.receive() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert inlet.dropped == 0


@pytest.mark.parametrize("closes", ["none", "send", "receive"])
async def test_the_inlet_drops_and_counts_what_nobody_can_take(closes: str) -> None:
    """An exception in this place would be the end of Trio, and so of the program."""
    send, receive = trio.open_memory_channel[int](0)
    if closes == "send":
        send.close()
    if closes == "receive":
        receive.close()
    async with open_asyncio_host() as host:
        inlet = host.inlet(send)

        async def callback() -> None:
            inlet.put(1)
            inlet.put(2)

        await host.run(callback)
        with trio.fail_after(5):
            while inlet.dropped < 2:
                await trio.lowlevel.checkpoint()
    assert inlet.dropped == 2


def test_the_inlet_is_quiet_after_the_end_of_trio() -> None:
    async def main() -> object:
        send, _ = trio.open_memory_channel[int](1)
        async with open_asyncio_host() as host:
            return host.inlet(send)

    inlet = trio.run(main)
    inlet.put(1)  # type: ignore[attr-defined]
