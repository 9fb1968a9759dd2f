"""What the books cost: `/api/usage` over 100,000 calls, and one call written down. `python -m tests.bench usage`."""

import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import quantiles

import httpx2
import trio

from spacebot.conversations.usage_log import UsageEntry
from spacebot.llm.messages import Usage
from tests.api.serving import open_server
from tests.fakes.completions import completion

CALLS, DAYS, BATCH = 100_000, 90, 5_000
MODELS = tuple(f"openrouter/vendor/model-{number}" for number in range(12))
KINDS = ("channel", "branch", "worker", "compactor", "cortex")
ROUNDS = 200
USAGE = Usage(input_tokens=900, output_tokens=120, cache_read_tokens=8000)


def entry(number: int) -> UsageEntry:
    """One of many, spread over days, models and processes."""
    day = (datetime.now(UTC) - timedelta(days=number % DAYS)).strftime("%Y-%m-%d")
    kind = KINDS[number % 5]
    return completion(
        MODELS[number % 12], USAGE, day=day, kind=kind, process_id=f"p{number // 8}", cost=0.01, saved=0.001
    )


async def bench(folder: Path) -> None:
    """Fill, ask, print."""
    async with open_server(folder, patience_s=600) as served:
        log = served.agent.usage.log
        for first in range(0, CALLS, BATCH):
            await log.record([entry(number) for number in range(first, first + BATCH)])
        for days in (30, 366):
            print(
                f"GET /api/usage, {days} days of {CALLS} calls, p95: {await p95(served.client, days):.1f} ms (reach 50)"
            )
        began = time.perf_counter()
        for number in range(100):
            await log.record([entry(number)])
        print(f"one call written down, mean: {(time.perf_counter() - began) * 10:.2f} ms")
        began = time.perf_counter()
        models = await served.client.get("/api/models")
        print(f"GET /api/models: {(time.perf_counter() - began) * 1000:.1f} ms, {len(models.content)} bytes")


async def p95(client: httpx2.AsyncClient, days: int) -> float:
    """Milliseconds that 95 of 100 answers take at most."""
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        answer = await client.get("/api/usage", params={"days": days})
        took.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200
    return quantiles(took, n=20)[-1]


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        trio.run(bench, Path(folder))


if __name__ == "__main__":
    main()
