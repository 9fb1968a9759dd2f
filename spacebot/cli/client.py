"""The commands' side of the control socket; standard library only, so that a command starts at once.

Floor:   cli
Source:  control spec 3.2; the other side is `api/control.py`
"""

import json
import os
import socket
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import Any, BinaryIO

from spacebot.base.control_address import check_address, control_address
from spacebot.base.errors import RefusedError, SpacebotError
from spacebot.base.paths import InstancePaths

CONNECT_S = 2.0
ANSWER_S = 10.0  # reading prompts again takes the longest
CHUNK = 65536  # bytes

Answer = dict[str, Any]


class NoDaemonError(SpacebotError):
    """Nobody listens at the control socket."""


class LostDaemonError(NoDaemonError):
    """The connection broke before the answer was complete."""


def ask(paths: InstancePaths, command: str, *, timeout_s: float = ANSWER_S, **fields: Any) -> Answer:
    """Send a command and wait for its answer.

    Errors: NoDaemonError when nobody answers; RefusedError with the daemon's own words.
    """
    with closing(stream(paths, command, timeout_s=timeout_s, **fields)) as answers:
        for answer in answers:
            return answer
    raise LostDaemonError("the daemon closed the connection without an answer")


def stream(
    paths: InstancePaths, command: str, *, timeout_s: float | None = None, **fields: Any
) -> Generator[Answer, None, None]:
    """Send a command and give its answers one by one, until the daemon closes the connection.

    Args:
        timeout_s: longest silence; None waits for ever.

    Errors: as `ask`.
    """
    return _exchange(paths, command, fields, timeout_s=timeout_s)


def upload(paths: InstancePaths, command: str, file: BinaryIO | None, **fields: Any) -> Generator[Answer, None, None]:
    """The same with a file behind the request, whose `size` is among the fields."""
    return _exchange(paths, command, fields, file=file)


def _exchange(
    paths: InstancePaths,
    command: str,
    fields: dict[str, Any],
    *,
    timeout_s: float | None = None,
    file: BinaryIO | None = None,
) -> Generator[Answer, None, None]:
    with _connect(paths) as connection:
        connection.settimeout(timeout_s)
        request = json.dumps({"command": command, **{key: value for key, value in fields.items() if value is not None}})
        try:
            connection.sendall(request.encode() + b"\n")
            if file is not None:
                with suppress(BrokenPipeError):  # it has answered already
                    connection.sendfile(file)
            for line in _lines(connection):
                answer: Answer = json.loads(line)
                if answer.get("result") == "error":
                    raise RefusedError(str(answer.get("message")))
                yield answer
        except TimeoutError as error:
            raise LostDaemonError(f"the daemon did not answer within {timeout_s:g} seconds") from error
        except (OSError, ValueError) as error:
            raise LostDaemonError(f"the connection to the daemon broke ({error})") from error


def _connect(paths: InstancePaths) -> socket.socket:
    address = control_address(paths.socket)
    check_address(address)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_S)
    try:
        connection.connect(os.fsencode(address))
    except OSError as error:
        connection.close()
        raise NoDaemonError(f"spacebot is not running in {paths.root}") from error
    return connection


def _lines(connection: socket.socket) -> Iterator[bytes]:
    buffer = b""
    while chunk := connection.recv(CHUNK):
        *lines, buffer = (buffer + chunk).split(b"\n")
        yield from lines
