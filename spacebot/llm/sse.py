"""Server-sent events: bytes in, data fields out.

Only the `data` field matters to us: every dialect repeats the event's name inside its JSON.

Floor:  llm
Source: WHATWG HTML, section 9.2, without lone carriage returns, which no provider sends
"""

MAX_EVENT_BYTES = 16 * 1024 * 1024  # more in one event is no model's answer


class EventReader:
    """Cuts a byte stream into events; the borders of its pieces may lie anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Take more bytes; give the data of every event that is complete now.

        Errors: ValueError when an event grows beyond `MAX_EVENT_BYTES`.
        """
        lines = (self._rest + piece).split(b"\n") if self._rest else piece.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError("an event of the stream is too long")
        events: list[bytes] = []
        for line in lines:
            self._take_line(line, events)
        return events

    def finish(self) -> list[bytes]:
        """The stream has ended: give what an absent last blank line held back."""
        events: list[bytes] = []
        rest, self._rest = self._rest, b""
        for line in (rest, b""):
            self._take_line(line, events)
        return events

    def _take_line(self, line: bytes, events: list[bytes]) -> None:
        line = line.removesuffix(b"\r")
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif not line and self._data:
            events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
            self._data = []
