"""500 jobs due in the same minute: `python -m tests.bench cron [jobs]`.

A whole agent on a real clock, with a model that answers at once: how long after the due time each run has begun and
has ended (its result is in the log of its target), that none ran twice, and that a copy of the files taken in the
middle, as `kill -9` would leave them, runs none of those again when it is opened.
"""

import sys
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import trio

from spacebot.base.clock import Clock, from_text, to_text
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId
from spacebot.cron.jobs import Run
from tests.fakes.opened import Opened, freeze_copy, open_test_agent, text_from
from tests.fakes.scripted_model import Call, ScriptedModel

BEGUN_S = 5.0
ROOM = "test:room"


async def measure(count: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        model = ScriptedModel(lambda request: Call("reply", content="done"))
        async with open_test_agent(first, model, patience_s=300) as opened:
            await opened.agent.conversations.accept(text_from("Ann", "hi", conversation=ROOM), observe=True)
            for number in range(count):
                await opened.agent.schedules.save(
                    {"id": f"job-{number}", "prompt": "Say it.", "interval_secs": 60, "delivery_target": ROOM}
                )
            due = await _all_due_soon(opened)
            killed = None
            while len(_ended(opened)) < count:
                await trio.sleep(0.02)
                if killed is None and opened.of_kind(EventKind.CRON_RUN):
                    killed = await trio.to_thread.run_sync(freeze_copy, opened, Path(folder) / "killed")
            runs = await opened.agent.schedules.history(limit=10 * count)
            said = await opened.agent.conversations.recent(ConversationId(ROOM), 10 * count)
        failed = _report(count, [run for run in runs if run.due_at == due], said)
        assert killed is not None
        return failed + await _look_again(killed, due)


async def _all_due_soon(opened: Opened) -> str:
    """Let all jobs be due at one moment, two seconds from now."""
    due = to_text(Clock().now() + timedelta(seconds=2))
    schedules = opened.agent.schedules
    await schedules.jobs.database.write(lambda c: c.execute("UPDATE cron_jobs SET next_due_at = ?", (due,)))
    schedules.scheduler.wake()
    return due


def _ended(opened: Opened) -> list[Any]:
    return [event for event in opened.of_kind(EventKind.CRON_RUN) if event.fields["state"] != "running"]


def _report(count: int, runs: list[Run], said: list[Any]) -> int:
    begun = sorted((from_text(run.started_at or "") - from_text(run.due_at)).total_seconds() for run in runs)
    ended = sorted((from_text(run.completed_at or "") - from_text(run.due_at)).total_seconds() for run in runs)
    twice = sum(times > 1 for times in Counter((run.job_id, run.due_at) for run in runs).values())
    told = sum(row.role == "assistant" for row in said)
    states = dict(Counter(run.state for run in runs))
    print(f"{count} jobs due at once: {len(runs)} runs {states}, {twice} twice, {told} results delivered")
    print(f"  begun after the due time: p50 {begun[len(begun) // 2]:.2f} s, last {begun[-1]:.2f} s (reach {BEGUN_S} s)")
    print(f"  ended after the due time: p50 {ended[len(ended) // 2]:.2f} s, last {ended[-1]:.2f} s")
    return int(len(runs) != count or twice > 0 or begun[-1] > BEGUN_S)


async def _look_again(killed: Path, due: str) -> int:
    """Open the files of the moment of death: what had been taken is not run again."""
    model = ScriptedModel(lambda request: Call("skip", reason="-"))
    async with open_test_agent(killed, model, patience_s=300) as opened:
        await trio.sleep(1)
        runs = [run for run in await opened.agent.schedules.history(limit=10_000) if run.due_at == due]
    states = Counter(run.state for run in runs)
    twice = sum(times > 1 for times in Counter(run.job_id for run in runs).values())
    print(f"  files of the middle, opened again: {dict(states)}, {twice} twice")
    return int(twice > 0 or states["running"] > 0)


if __name__ == "__main__":
    sys.exit(trio.run(measure, int(sys.argv[1]) if len(sys.argv) > 1 else 500))
