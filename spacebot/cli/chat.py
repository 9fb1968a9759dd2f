"""`chat`: an agent in the terminal, over the control socket.

With a message, or fed through a pipe, each question waits for its answer. In a terminal nothing waits: what is typed is
sent at once, and everything that is said, late results of workers included, is printed as it comes. The program may be
restarted meanwhile: a message has an id of its own, so sending it again changes nothing, and the stream goes on after
the last message that was shown.

Floor: cli; standard library only
"""

import contextlib
import getpass
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from spacebot.base.errors import RefusedError, SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import Answer, NoDaemonError, ask, stream

RETRY_S = 0.5
PATIENCE_S = 60.0  # how long a message waits for a program that is being restarted
ANSWER_S = 15.0  # silence at the control socket that counts as a broken connection when something is to be accepted
PROMPT = "> "
DELTA = "outbound_message_delta"
EARLIER = 6  # messages of the talk that are shown when a person comes back to it
CLEAR_LINE = "\r\x1b[K"


def chat(paths: InstancePaths, *, agent: str | None, session: str, message: str) -> int:
    """Talk: one message, the lines of a pipe, or a person in a terminal."""
    talk = _Talk(paths, agent, session)
    if message.strip():
        return talk.say(message)
    if sys.stdin.isatty() and sys.stdout.isatty():
        return talk.converse()
    code = 0
    for line in sys.stdin:
        if line.strip():
            code = talk.say(line.strip()) or code
    return code


class _Talk:
    def __init__(self, paths: InstancePaths, agent: str | None, session: str) -> None:
        self._paths = paths
        self._agent = agent
        self._session = session
        self._sender = _user_name()
        self._last_seq: int | None = None
        self._earlier_until = 0  # up to this number the talk is what was said before
        self._asked: str | None = None
        self._shown: set[str] = set()  # ids of messages
        self._screen = _Screen()

    def say(self, text: str) -> int:
        """Send one message, print what is answered; 1 when it could not be answered."""
        client_id = str(uuid.uuid4())
        deadline: float | None = None
        while True:
            try:
                for answer in self._stream(text=text, client_id=client_id, until_answered=True):
                    deadline = None
                    self._show(answer, client_id)
                    if answer["result"] == "end" and "state" in answer:
                        return _verdict(answer)
            except NoDaemonError:
                if self._last_seq is None:
                    raise  # it was not running in the first place
            # It is being stopped or restarted. The message is on its disk, or will be when it is sent again.
            deadline = deadline or time.monotonic() + PATIENCE_S
            if time.monotonic() > deadline:
                raise RefusedError(f"spacebot has not come back within {PATIENCE_S:g} seconds; the message is kept")
            time.sleep(RETRY_S)

    def converse(self) -> int:
        """Talk with a person until the end of input."""
        status = ask(self._paths, "status")
        print(f"talking to {self._agent or 'the default agent'} ({status.get('model')}); Ctrl-D ends", file=sys.stderr)
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (editing and history for input())
        self._screen.is_live = True
        listener = threading.Thread(target=self._listen, name="chat stream", daemon=True)
        listener.start()
        while True:
            try:
                text = input(PROMPT)
            except EOFError:
                print()
                return 0
            if text.strip() == "/quit":
                return 0
            if text.strip():
                self._send(text)

    def _send(self, text: str) -> None:
        client_id = str(uuid.uuid4())
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                ask(
                    self._paths, "send", timeout_s=ANSWER_S, agent=self._agent, session=self._session,
                    sender=self._sender, text=text, client_id=client_id,
                )  # fmt: skip
                return
            except NoDaemonError as error:
                if time.monotonic() > deadline:
                    self._screen.note(f"not sent: {error}")
                    return
                time.sleep(RETRY_S)
            except SpacebotError as error:
                self._screen.note(f"not sent: {error}")
                return

    def _listen(self) -> None:
        """Show what is said, for as long as the process lives."""
        is_lost = False
        while True:
            try:
                for answer in self._stream():
                    if is_lost:
                        self._screen.note("spacebot is back")
                        is_lost = False
                    self._show(answer)
            except NoDaemonError:
                pass
            except SpacebotError as error:
                self._screen.note(str(error))
                return
            if not is_lost:
                self._screen.note("spacebot is away; waiting for it to come back")
                is_lost = True
            time.sleep(RETRY_S)

    def _stream(self, **fields: Any) -> Iterator[Answer]:
        return stream(
            self._paths, "chat", agent=self._agent, session=self._session, sender=self._sender,
            after_seq=self._last_seq, **({"last": EARLIER} if self._screen.is_live else {}), **fields,
        )  # fmt: skip

    def _show(self, answer: Answer, client_id: str | None = None) -> None:
        """Show what is said.

        Args:
            client_id: of the one message that is asked; then only what is said to it.
        """
        if answer["result"] == "accepted":
            self._asked = answer["message_id"]
            self._last_seq = self._last_seq or answer["seq"]
        for reply in answer.get("replies", ()):  # at the end: whatever did not come as an event
            self._show_message(reply)
        if answer["result"] != "event":
            return
        name, data = answer["name"], answer["data"]
        if client_id is not None and name in ("message", DELTA) and data.get("reply_to") != self._asked:
            return
        if name == "hello" and self._last_seq is None:
            self._last_seq = self._earlier_until = data["last_seq"]
        elif name == DELTA:
            self._screen.grow(str(data.get("text") or ""))
        elif name == "message":
            self._last_seq = max(self._last_seq or 0, data["seq"])
            self._show_message(data)

    def _show_message(self, message: Answer) -> None:
        if message["id"] in self._shown:
            return
        self._shown.add(message["id"])
        if message["role"] == "assistant":
            self._screen.finish("\n".join(filter(None, (message["content"], _file_line(message.get("file"))))))
        elif self._screen.is_live and (
            message["sender_id"] != f"terminal:{self._sender}" or message["seq"] <= self._earlier_until
        ):
            self._screen.finish(f"{message['sender_name']}: {message['content']}")


def _file_line(file: Answer | None) -> str:
    """What a terminal shows of a file that was sent."""
    if file is None:
        return ""
    return f"[file {file['filename']}, {-(-file['size_bytes'] // 1024)} kB; the web chat has it, in this session]"


class _Screen:
    """Prints texts that grow, and in a terminal keeps the line that is being typed below them."""

    def __init__(self) -> None:
        self.is_live = False
        self._growing = ""
        self._streams = sys.stdout.isatty()

    def grow(self, text: str) -> None:
        """Show more of a text that is not finished; each call has the whole text so far."""
        text = self._clean(text)
        if self._streams and text.startswith(self._growing) and len(text) > len(self._growing):
            lead = CLEAR_LINE if self.is_live and not self._growing else ""
            self._write(lead + text[len(self._growing) :])
            self._growing = text

    def finish(self, text: str) -> None:
        """Show a whole text, or what is missing of the one that grew."""
        text = self._clean(text)
        if self._growing and text.startswith(self._growing):
            self._write(text[len(self._growing) :] + "\n" + self._typed())
        else:
            lead = "\n" if self._growing else CLEAR_LINE if self.is_live else ""
            self._write(lead + text + "\n" + self._typed())
        self._growing = ""

    def note(self, text: str) -> None:
        """A line about the connection."""
        self._growing = ""
        sys.stderr.write(f"{CLEAR_LINE}[{text}]\n" if self.is_live else f"[{text}]\n")
        sys.stderr.flush()
        self._write(self._typed())

    def _typed(self) -> str:
        if not self.is_live:
            return ""
        readline = sys.modules.get("readline")
        return PROMPT + (readline.get_line_buffer() if readline else "")

    def _clean(self, text: str) -> str:
        """What an agent says must not steer the terminal; a file or pipe gets it as it is."""
        return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text) if self._streams else text

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _verdict(end: Answer) -> int:
    reason = f": {end['reason']}" if end.get("reason") else ""
    if end["state"] == "answered":
        return 0
    if end["state"] in ("skipped", "observed"):
        print(f"[no answer{reason}]", file=sys.stderr)
        return 0
    print(f"[{end['state']}{reason}]", file=sys.stderr)
    return 1


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
