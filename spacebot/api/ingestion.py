"""The drop folder over HTTP: which documents there are and how far they are, upload, remove.

Flow:    multipart body -> bounded stream -> parts with a file name -> Ingestion.receive -> names
Floor:   api
Source:  memory spec 13.6, control spec 4.6
"""

from dataclasses import asdict

import trio
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive

from spacebot.agent.documents import MAX_BYTES
from spacebot.agent.ingestion import IngestionState
from spacebot.api.requests import AGENT, Api, Param, required, route
from spacebot.conversations.ingestion_log import IngestedFile

FRAME_BYTES = 64 * 1024  # what boundaries and headers of the parts may take on top of the documents
MAX_PARTS = 100
UPLOAD_S = 120.0  # for the whole body


class IngestionRoutes:
    """Routes under `/api/agents/ingest`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route(
                "/api/agents/ingest/files",
                self.list_files,
                query=[AGENT],
                answer={"files": [IngestedFile], "state": IngestionState},
            ),
            route(
                "/api/agents/ingest/files",
                self.remove,
                "DELETE",
                query=[AGENT, Param("content_hash", "which", is_needed=True)],
                answer={"success": bool},
            ),
            route(
                "/api/agents/ingest/upload",
                self.upload,
                "POST",
                query=[AGENT],
                upload="multipart/form-data",
                answer={"uploaded": [str]},
            ),
        ]

    async def list_files(self, request: Request) -> Response:
        """The newest hundred documents, newest first, and what ingestion is doing."""
        ingestion = self._api.agent(request.query_params.get("agent_id")).ingestion
        files = [asdict(file) for file in await ingestion.files()]
        return JSONResponse({"files": files, "state": asdict(ingestion.state())})

    async def remove(self, request: Request) -> Response:
        """Remove a document: its file, its progress, its row. What was learned from it stays."""
        agent = self._api.agent(request.query_params.get("agent_id"))
        await agent.ingestion.forget(required(request, "content_hash"))
        return JSONResponse({"success": True})

    async def upload(self, request: Request) -> Response:
        """Put the files of a form into the drop folder; all of them, or none. Answers with the names they got."""
        agent = self._api.agent(request.query_params.get("agent_id"))
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise HTTPException(415, "send the files as multipart/form-data")
        files = await _read_files(request)
        if not files:
            raise HTTPException(400, "no file with a name and content was in the form")
        return JSONResponse({"uploaded": await agent.ingestion.receive(files)})


async def _read_files(request: Request) -> list[tuple[str, bytes]]:
    """Names and contents of all parts that are files and not empty.

    Errors: HTTPException 400 (not a form), 408 (too slow), 413 (too long).
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BYTES + FRAME_BYTES:
        raise _too_long()
    bounded = Request(request.scope, _bounded(request.receive))
    files: list[tuple[str, bytes]] = []
    try:
        with trio.fail_after(UPLOAD_S):
            async with bounded.form(max_files=MAX_PARTS, max_fields=MAX_PARTS) as form:
                for _, part in form.multi_items():
                    if isinstance(part, UploadFile) and part.filename and (data := await part.read()):
                        files.append((part.filename, data))
    except trio.TooSlowError as error:
        raise HTTPException(408, f"the files did not arrive within {UPLOAD_S:.0f} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection ended before the files did") from error
    return files


def _bounded(receive: Receive) -> Receive:
    """The body as it comes in, up to the limit."""
    taken = 0

    async def receive_bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BYTES + FRAME_BYTES:
            raise _too_long()
        return message

    return receive_bounded


def _too_long() -> HTTPException:
    text = f"the files are larger than {MAX_BYTES // 2**20} MiB together; send them one by one, or split them"
    return HTTPException(413, text, headers={"connection": "close"})
