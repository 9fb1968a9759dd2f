"""The floor of the figures: a bot that only asks the model and answers, on the same libraries and machine.

python -m tests.bench.floor URL      serves POST / until killed; prints its port
"""

import sys
from functools import partial
from typing import Any

import httpx2
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

SHARDS, CONNECTIONS = 50, 20  # as the program has them


async def main(url: str) -> None:
    """Serve."""
    limits = httpx2.Limits(max_connections=CONNECTIONS)
    context = httpx2.create_ssl_context()
    clients = [httpx2.AsyncClient(verify=context, timeout=60, limits=limits) for _ in range(SHARDS)]
    limiters = [trio.CapacityLimiter(CONNECTIONS) for _ in clients]

    async def answer(request: Request) -> JSONResponse:
        body: dict[str, Any] = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        _ = await request.json()
        shard = next((i for i, limiter in enumerate(limiters) if limiter.available_tokens), 0)
        async with limiters[shard]:
            reply = await clients[shard].post(f"{url}/v1/chat/completions", json=body)
        return JSONResponse({"bytes": len(reply.content)})

    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.keep_alive_timeout = 75
    async with trio.open_nursery() as nursery:
        app: Any = Starlette(routes=[Route("/", answer, methods=["POST"])])
        (bound,) = await nursery.start(partial(serve, app, config))
        print(bound.rpartition(":")[2], flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
