"""Backup and restore over HTTP: both are streamed, none of them stands in memory as a whole.

A backup is packed by a thread that waits for the reader. A restore is only put ready: the program cannot exchange the
files that it has open, so the next start does.

Flow:    export: write_backup -> _Sink -> channel -> connection;  restore: body -> unnamed file -> stage_backup
Floor:   api
Source:  control spec 4.2, 8.1.29
"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import IO, Any

import trio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from spacebot.api.requests import Api, Param, route
from spacebot.base.errors import BusyError, StorageError
from spacebot.base.paths import InstancePaths, package_file
from spacebot.config.load import read_source
from spacebot.storage.backup import write_backup
from spacebot.storage.restore import HEADROOM, Staged, stage_backup

PIECE = 256 * 1024  # bytes that go out, or to the disk, at a time
AHEAD = 4  # pieces that wait for a slow reader
MAX_UPLOAD = 64 << 30  # bytes
SILENCE_S = 60.0  # of somebody who sends, or does not read on
KINDS = ("application/zip", "application/octet-stream", "application/x-zip-compressed")


class BackupRoutes:
    """Routes under `/api/system/backup`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._limiter = trio.CapacityLimiter(1)  # each works the disk hard

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route(
                "/api/system/backup/export",
                self.export,
                query=[
                    Param("workspace", "0 leaves out the files that workers work on", int, 1, low=0, high=1),
                    Param("secrets", "1 adds the stored secrets, sealed; never their key", int, 0, low=0, high=1),
                ],
                media="application/zip",
            ),
            route(
                "/api/system/backup/restore",
                self.restore,
                "POST",
                upload="application/zip",
                answer={
                    "restored": bool, "files_restored": int, "message": str, "requires_restart": bool,
                    "created_at": str, "version": str,
                },
            ),
        ]  # fmt: skip

    async def export(self, request: Request) -> "_Export":
        """Everything of the instance as one zip, consistent while the program works."""
        self._refuse_second()
        query = request.query_params
        pack = partial(
            write_backup,
            self._api.program.paths,
            with_workspace=query.get("workspace", "1") != "0",
            with_secrets=query.get("secrets", "0") == "1",
            progress=lambda report: trio.from_thread.check_cancelled(),
        )
        return _Export(pack, self._limiter)

    async def restore(self, request: Request) -> Response:
        """Take over a backup, sent as it is; it is judged now and takes its place at the next start."""
        self._refuse_second()
        kind = request.headers.get("content-type", KINDS[0]).partition(";")[0].strip().lower()
        if kind not in KINDS:
            raise HTTPException(415, f"send the zip itself as {KINDS[0]}, not as {kind[:60]!r}")
        paths = self._api.program.paths
        _check_room(paths.root, request.headers)
        # Without a name in the file system: nothing of it stays, however this ends.
        file: IO[bytes] = await trio.to_thread.run_sync(_unnamed_file, paths.root)
        try:
            if not await _receive(request, file):
                raise HTTPException(400, "the body is empty; send the zip that a backup has made")
            staged = await trio.to_thread.run_sync(_stage, paths, file, limiter=self._limiter)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(file.close)
        return JSONResponse(
            {
                "restored": True,
                "files_restored": len(staged.manifest.files),
                "message": "the backup is right and waits; restart the program (spacebot restart) and it takes its "
                "place. What is there now is kept aside for a day.",
                "requires_restart": True,
                "created_at": staged.manifest.created_at,
                "version": staged.manifest.version,
            }
        )

    def _refuse_second(self) -> None:
        if self._limiter.available_tokens < 1:
            raise BusyError("a backup or a restore is at work already; wait until it is done")


def _unnamed_file(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


def _stage(paths: InstancePaths, file: IO[bytes]) -> Staged:
    file.seek(0)
    return stage_backup(paths, file, migrations=package_file("storage", "sql"), check_config=lambda path: _parse(path))


def _parse(config: Path) -> None:
    read_source(config)  # whether its values are right depends on the environment of the next start


def _check_room(root: Path, headers: Mapping[str, str]) -> None:
    announced = headers.get("content-length", "0")
    size = int(announced[:18]) if announced.isdecimal() else 0
    if size > MAX_UPLOAD:
        raise _too_long()
    if size > shutil.disk_usage(root).free - HEADROOM:
        raise StorageError(f"the disk has no room for {size >> 20} MiB; make some, then try again")


async def _receive(request: Request, file: IO[bytes]) -> int:
    """Write the body into a file; returns its size.

    Errors: HTTPException 400, 408, 413; StorageError when the disk is full.
    """
    size, held = 0, bytearray()
    try:
        async with aclosing(request.stream()) as parts:
            while True:
                with trio.fail_after(SILENCE_S):
                    part = await anext(parts, None)
                if part is None:
                    break
                size += len(part)
                if size > MAX_UPLOAD:
                    raise _too_long()
                held += part
                if len(held) >= PIECE:
                    await trio.to_thread.run_sync(file.write, bytes(held))
                    held.clear()
        await trio.to_thread.run_sync(file.write, bytes(held))
        await trio.to_thread.run_sync(file.flush)
    except trio.TooSlowError as error:
        raise HTTPException(408, f"nothing came for {SILENCE_S:.0f} s; send the backup again") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection ended before the backup did") from error
    except OSError as error:
        raise StorageError(f"the backup cannot be kept ({error.strerror}); make room on the disk") from error
    return size


def _too_long() -> HTTPException:
    text = f"the backup is larger than {MAX_UPLOAD >> 30} GiB; use spacebot restore on the machine itself"
    return HTTPException(413, text, headers={"connection": "close"})


class _Sink:
    """Where the packing thread writes to; it waits while the reader is slow, and fails when the reader is gone."""

    def __init__(self, out: trio.MemorySendChannel[bytes]) -> None:
        self._out = out
        self._held = bytearray()

    def write(self, data: bytes, /) -> int:
        """Pass bytes on. Errors: trio.BrokenResourceError, trio.Cancelled."""
        self._held += data
        if len(self._held) >= PIECE:
            self.send()
        return len(data)

    def flush(self) -> None:
        """Nothing is gained by small pieces."""

    def send(self) -> None:
        """Pass on what is held."""
        piece, self._held = bytes(self._held), bytearray()
        if piece:
            trio.from_thread.run(self._out.send, piece)


class _Export:
    """An ASGI response; what goes wrong before the first byte can become an error answer."""

    def __init__(self, pack: Any, limiter: trio.CapacityLimiter) -> None:
        self._pack = pack
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the archive while it is packed; a reader who leaves ends the packing."""
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": _headers()})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        failure: Exception | None = None
        is_gone = False
        async with trio.open_nursery() as nursery:
            out, pieces = trio.open_memory_channel[bytes](AHEAD)

            async def watch() -> None:
                nonlocal is_gone
                while (await receive())["type"] != "http.disconnect":
                    pass
                is_gone = True
                nursery.cancel_scope.cancel()

            async def pack() -> None:
                nonlocal failure
                async with out:
                    try:
                        await trio.to_thread.run_sync(_run, self._pack, _Sink(out), limiter=self._limiter)
                    except Exception as error:  # out of the nursery as itself, not in a group
                        failure = error

            nursery.start_soon(watch)
            nursery.start_soon(pack)
            has_started = False
            async with pieces:
                while (piece := await _next(pieces)) is not None:
                    if not has_started:
                        await send({"type": "http.response.start", "status": 200, "headers": _headers()})
                        has_started = True
                    with trio.move_on_after(SILENCE_S) as patience:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    if patience.cancelled_caught:
                        failure = BusyError(f"nobody took the backup for {SILENCE_S:.0f} s")
                        break
            if failure is None and has_started:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()
        if failure is not None and not is_gone:
            raise failure  # after the first byte the connection is cut: nobody takes half a zip for a whole one


def _run(pack: Any, sink: _Sink) -> None:
    pack(sink)
    sink.send()


async def _next(pieces: trio.MemoryReceiveChannel[bytes]) -> bytes | None:
    try:
        return await pieces.receive()
    except trio.EndOfChannel:
        return None


def _headers() -> list[tuple[bytes, bytes]]:
    name = f"spacebot-backup-{time.strftime('%Y%m%d-%H%M%S')}.zip"
    return [
        (b"content-type", b"application/zip"),
        (b"content-disposition", f'attachment; filename="{name}"'.encode()),
    ]
