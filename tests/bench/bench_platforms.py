"""The figures of the platforms: the real daemon between the stand-ins of all platforms and a stand-in model.

python -m tests.bench platforms [latency load losses kill blocked]
"""

import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio

from tests.bench.spine import line, percentile
from tests.real_daemon import Daemon, Http, running
from tests.stand_ins.openai import last_user_text, serve_openai
from tests.stand_ins.serving import Answer
from tests.towns import MARKER, AnyTown, Towns, mark, open_towns, until

PLATFORMS = ("discord", "slack", "telegram", "twitch")
MEMBERS = 200
ROOMS = 20
SECONDS = 60.0
RATE = {
    "discord": 7.0,
    "slack": 7.0,
    "telegram": 7.0,
    "twitch": 2.0,
}  # messages a second; what the last one's limits bear
ADDRESSED = 0.5  # share that names the agent


class Arrivals:
    """When the model was asked about each marker, in the loop's seconds."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def respond(self, body: Any) -> Answer:
        now = trio.current_time()
        for marker in MARKER.findall(last_user_text(body).rpartition("</now>")[2]):
            self.at.setdefault(marker, now)
        return mark(body)


@asynccontextmanager
async def world(
    folder: Path, *, rooms: int, latency_s: float = 0.0, platforms: tuple[str, ...] = PLATFORMS
) -> AsyncIterator[tuple[Towns, Daemon, Arrivals]]:
    """All platforms, a model and a daemon that is connected to all of them."""
    arrivals = Arrivals()
    async with (
        serve_openai(arrivals.respond, latency_s=latency_s, one_write=True, keep=False) as model,
        open_towns(rooms=rooms, platforms=platforms) as towns,
    ):
        daemon = Daemon(folder, model_url=model.url, extra="\n" + towns.config)
        with running(daemon):
            await connected(daemon)
            if "twitch" in platforms:  # rooms are joined one after another, twenty in ten seconds
                await towns["twitch"].standin.joined(*(f"room{n}" for n in range(rooms)))  # type: ignore[union-attr]
            yield towns, daemon, arrivals
        if towns.complaints:
            print("complaints of the stand-ins:", *towns.complaints[:10], sep="\n  ")


async def connected(daemon: Daemon) -> None:
    """Wait until every adapter is."""
    http = Http(daemon.port)
    with trio.fail_after(30):
        while True:
            _, status = await http.get("/api/messaging/status")
            if all(one["state"] == "connected" for one in status["instances"]):
                break
            await trio.sleep(0.05)
    await http.close()


async def ask(town: AnyTown, number: int, arrivals: Arrivals) -> float:
    """One direct question; seconds until the model has it, after the answer came back."""
    marker = f"m{number}"
    began = trio.current_time()
    await town.say(-1, "ann", marker, addressed=True)
    if not await until(lambda: marker in arrivals.at and marker in " ".join(town.heard(-1, "ann"))[-4000:], 20):
        raise RuntimeError(f"{town.platform}: {marker} was not answered")
    return arrivals.at[marker] - began


async def latency(folder: Path) -> None:
    """Platform event to model request, one after another."""
    for platform in PLATFORMS:
        async with world(folder / platform, rooms=1, platforms=(platform,)) as (towns, _, arrivals):
            town, base = towns[platform], 10_000
            for n in range(10):
                await ask(town, base + n, arrivals)
            count = 15 if platform == "twitch" else 100  # its account may say 100 lines in 30 s
            took = [await ask(town, base + 100 + n, arrivals) for n in range(count)]
            line(
                f"{platform}: event to model request, p50 / p95",
                f"{percentile(took, 0.5):.1f} / {percentile(took, 0.95):.1f} ms",
                "20 / 40 ms",
            )


@dataclass
class Load:
    """People who talk in all rooms of all platforms."""

    towns: Towns
    seed: int = 1
    said: dict[tuple[str, int], list[str]] = field(default_factory=dict)  # (platform, room) -> addressed markers
    others: int = 0
    _number: int = 0

    @property
    def count(self) -> int:
        """All messages."""
        return self._number

    async def talk(self, seconds: float) -> None:
        """Talk for so long."""
        async with trio.open_nursery() as nursery:
            for town in self.towns:
                nursery.start_soon(self._talk, town, seconds)

    async def _talk(self, town: AnyTown, seconds: float) -> None:
        dice = random.Random(f"{self.seed}{town.platform}")
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            self._number += 1
            marker, room = f"m{self._number}", dice.randrange(ROOMS)
            addressed = dice.random() < ADDRESSED
            if addressed:
                self.said.setdefault((town.platform, room), []).append(marker)
            await town.say(room, f"member{dice.randrange(MEMBERS)}", marker, addressed=addressed)
            await trio.sleep(dice.expovariate(RATE[town.platform]))

    def heard(self) -> dict[tuple[str, int], list[str]]:
        """Markers that the agent answered, in order, by room."""
        return {
            (town.platform, room): [m for text in town.heard(room) for m in MARKER.findall(text)]
            for town in self.towns
            for room in range(ROOMS)
        }

    def missing(self) -> int:
        """Addressed messages without an answer."""
        heard = self.heard()
        return sum(len(set(markers) - set(heard[place])) for place, markers in self.said.items())

    def verdict(self) -> str:
        """What was lost, doubled, or answered out of order."""
        heard = self.heard()
        doubled = sum(len(markers) - len(set(markers)) for markers in heard.values())
        wrong = 0
        for place, markers in heard.items():
            places = {marker: n for n, marker in enumerate(self.said.get(place, ()))}
            order = [places[marker] for marker in dict.fromkeys(markers) if marker in places]
            wrong += sum(a > b for a, b in pairwise(order))
        by_platform = {
            town.platform: sum(
                len(set(markers) - set(heard[place]))
                for place, markers in self.said.items()
                if place[0] == town.platform
            )
            for town in self.towns
        }
        lost = ", ".join(f"{platform} {count}" for platform, count in by_platform.items() if count)
        total = sum(map(len, self.said.values()))
        gone = f"{sum(by_platform.values())}{f' ({lost})' if lost else ''}"
        return f"{total} addressed, lost {gone}, doubled {doubled}, out of order {wrong}"


async def load(folder: Path) -> None:
    """Everybody talks at once for a minute."""
    async with world(folder, rooms=ROOMS, latency_s=1.0) as (towns, daemon, _):
        people = Load(towns)
        before = daemon.cpu_s()
        await people.talk(SECONDS)
        await until(lambda: people.missing() == 0, 60)
        cpu = (daemon.cpu_s() - before) / people.count
        line(
            f"{MEMBERS} members, {ROOMS} rooms on each of four, 60 s ({people.count} messages)",
            people.verdict(),
            "all, in order, once",
        )
        line("  CPU per message", f"{cpu * 1000:.1f} ms", "20 ms", f"RSS {daemon.rss_mib():.0f} MiB")


async def losses(folder: Path) -> None:
    """Fifty connections are lost while everybody talks."""
    async with world(folder, rooms=ROOMS, latency_s=1.0) as (towns, daemon, _):
        people = Load(towns, seed=2)
        lost = 0

        async def lose() -> None:
            nonlocal lost
            while True:
                await trio.sleep(SECONDS / 14)
                for town in towns:
                    await town.lose_connection()
                    lost += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose)
            await people.talk(SECONDS)
            nursery.cancel_scope.cancel()
        await connected(daemon)
        await until(lambda: people.missing() == 0, 60)
        line(f"{lost} connections lost under that load", people.verdict(), "none lost or doubled")


async def kill(folder: Path) -> None:
    """kill -9 in the middle of it, on one platform after the other."""
    for platform in PLATFORMS:
        async with world(folder / platform, rooms=ROOMS, latency_s=1.0, platforms=(platform,)) as (towns, daemon, _):
            people = Load(towns, seed=3)
            gaps: list[float] = []

            async def killer(daemon: Daemon = daemon, gaps: list[float] = gaps) -> None:
                for _ in range(3):
                    await trio.sleep(5)
                    await trio.to_thread.run_sync(daemon.kill)
                    began = trio.current_time()
                    await trio.to_thread.run_sync(daemon.start)
                    await connected(daemon)
                    gaps.append(trio.current_time() - began)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(killer)
                await people.talk(22)
            await until(lambda people=people: people.missing() == 0, 40)
            line(
                f"{platform}: three kill -9 under load, back after {statistics.mean(gaps):.1f} s",
                people.verdict(),
                "none lost that is redelivered",
            )


async def blocked(folder: Path) -> None:
    """One platform answers very slowly; the others must not notice."""
    async with world(folder, rooms=ROOMS) as (towns, _, arrivals):
        others = [town for town in towns if town.platform not in ("discord", "twitch")]
        number = 10_000

        async def measure() -> list[float]:
            nonlocal number
            took = []
            for _ in range(60):
                for town in others:
                    number += 1
                    took.append(await ask(town, number, arrivals))
            return took

        calm = await measure()
        towns["discord"].stall(30.0)
        for room in range(ROOMS):
            await towns["discord"].say(room, "ann", f"m{room}", addressed=True)
        busy = await measure()
        line(
            "one adapter blocked: the others' p50 / p95 before and during",
            f"{percentile(calm, 0.5):.1f} / {percentile(calm, 0.95):.1f}, "
            f"{percentile(busy, 0.5):.1f} / {percentile(busy, 0.95):.1f} ms",
            "unchanged",
        )


FIGURES: dict[str, Callable[[Path], Awaitable[None]]] = {
    "latency": latency,
    "load": load,
    "losses": losses,
    "kill": kill,
    "blocked": blocked,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        with tempfile.TemporaryDirectory(prefix="spacebot-bench-") as folder:
            trio.run(FIGURES[name], Path(folder))
