"""The program's log over HTTP: the newest records, and a stream of what is written from now on.

Flow:    LogRing -> records that fit level and words -> scrubbed in a thread -> JSON, or frames with the number as id
Floor:   api
Source:  control spec 3.3 and 9 (live logs)
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.requests import AGAIN, Api, Param, number, resumed_number, route
from spacebot.api.streams import EventStream, Frame
from spacebot.base.telemetry import LogLine, LogRing, log_ring

PAGE, MAX_PAGE = 200, 1000
LONGEST_WORDS = 200
LEVELS = ("debug", "info", "warning", "error", "critical")
LINE = {"seq": int, "time": str, "level": str, "logger": str, "message": str, "fields": {"*": str}}
_WHICH = (
    Param("level", "the least level that is wanted", one_of=LEVELS),
    Param("contains", f"words that a record must hold, up to {LONGEST_WORDS} characters; capitals do not count"),
)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which records a reader asked for."""

    level: int
    words: str

    def fits(self, line: LogLine) -> bool:
        """Whether a record without secrets is one of them."""
        if line.level_number < self.level:
            return False
        if not self.words:
            return True
        texts = (line.message, line.logger, *line.fields, *line.fields.values())
        return any(self.words in text.casefold() for text in texts)


class LogRoutes:
    """Routes under `/api/logs`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route(
                "/api/logs",
                self.page,
                query=[
                    Param("limit", "records", int, PAGE, low=1, high=MAX_PAGE),
                    *_WHICH,
                    Param("before", "number of the oldest record already known", int),
                ],
                answer={"lines": [LINE], "has_more": bool},
            ),
            route(
                "/api/logs/stream",
                self.stream,
                query=[*_WHICH, Param("after", "number of the newest record already known", int), AGAIN],
                stream={"log": LINE, "lagged": {"type": str, "skipped": int}},
            ),
        ]

    async def page(self, request: Request) -> Response:
        """The newest records of this life of the program, oldest first."""
        limit = number(request, "limit", PAGE, low=1, high=MAX_PAGE) or PAGE
        before, wanted = number(request, "before", None), _wanted(request)
        lines = await trio.to_thread.run_sync(_fitting, _ring().lines(before=before), wanted)
        return JSONResponse({"lines": [_object(line) for line in lines[-limit:]], "has_more": len(lines) > limit})

    async def stream(self, request: Request) -> EventStream:
        """Records as they are written; who resumes gets those in between first, as far as they are kept."""
        ring, wanted, after = _ring(), _wanted(request), resumed_number(request)
        if after is None:
            after = number(request, "after", ring.last)
        assert after is not None

        @asynccontextmanager
        async def open_source() -> AsyncIterator[_Tail]:
            yield _Tail(ring, wanted, after if after <= ring.last else 0)  # a higher number is of another life

        return EventStream(self._api.streams, open_source)


class _Tail:
    """A reader's place in the log."""

    def __init__(self, ring: LogRing, wanted: _Wanted, after: int) -> None:
        self._ring = ring
        self._wanted = wanted
        self._after = after
        self._ready: list[Frame] = []

    async def receive(self) -> Frame | None:
        """Wait for the next record that fits."""
        while not self._ready:
            await self._ring.wait_newer(self._after)
            lines = self._ring.lines(after=self._after)
            if not lines:  # they were removed meanwhile
                self._after = self._ring.last
                continue
            if (skipped := lines[0].seq - self._after - 1) > 0 and self._after:
                self._ready.append(Frame("lagged", {"type": "lagged", "skipped": skipped}))
            self._after = lines[-1].seq
            fitting = await trio.to_thread.run_sync(_fitting, lines, self._wanted)
            self._ready += [Frame("log", _object(line), line.seq) for line in fitting]
            self._ready.reverse()
        return self._ready.pop()

    def receive_nowait(self) -> Frame | None:
        """The next frame if there is one already."""
        return self._ready.pop() if self._ready else None


def _ring() -> LogRing:
    if (ring := log_ring()) is None:
        raise HTTPException(404, "this program keeps no log in memory; look into the log files")
    return ring


def _wanted(request: Request) -> _Wanted:
    level = request.query_params.get("level") or "debug"
    if level not in LEVELS:
        raise HTTPException(400, f"level must be one of {', '.join(LEVELS)}; not {level[:40]!r}")
    words = request.query_params.get("contains", "")[:LONGEST_WORDS].casefold()
    return _Wanted(logging.getLevelNamesMapping()[level.upper()], words)


def _fitting(lines: Sequence[LogLine], wanted: _Wanted) -> list[LogLine]:
    """The records that fit, without secrets; words are looked for in what is shown only."""
    shown = (line.scrubbed() for line in lines if line.level_number >= wanted.level)
    return [line for line in shown if wanted.fits(line)]


def _object(line: LogLine) -> dict[str, Any]:
    return {
        "seq": line.seq,
        "time": line.time,
        "level": line.level,
        "logger": line.logger,
        "message": line.message,
        "fields": line.fields,
    }
