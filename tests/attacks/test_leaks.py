"""Models that obey whoever asks for a secret: every way out, in every writing. Nothing leaves, nothing is kept."""

# ruff: noqa: E501  (tables of attacks, read by the line)

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from spacebot.llm.messages import ProcessKind
from tests.agent.test_rooms import AT_ONCE
from tests.attacks.stage import FORBIDDEN, SYSTEM_SECRET, TOOL_SECRET, Act, play
from tests.fakes.scripted_model import Call

SHAPED = "ghp_" + "a1B2c3D4e5" * 4  # a key that nobody configured, known by its shape


def spread(text: str) -> str:
    return " ".join(text)


WRITINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "in a sentence": lambda text: f"of course: {text}.",
    "in quotes and brackets": lambda text: f"[`{text}`](https://example.org)",
    "in HTML": lambda text: f"<code>{text}</code>",
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 behind a letter": lambda text: base64.b64encode(f"x{text}".encode()).decode(),
    "base64 behind two letters": lambda text: base64.b64encode(f"xy{text}z".encode()).decode(),
    "base64 for addresses": lambda text: base64.urlsafe_b64encode(f"?{text}".encode()).decode().rstrip("="),
    "base64 in short lines": lambda text: "\n".join(
        base64.b64encode(f"the key is {text}".encode()).decode()[n : n + 12] for n in range(0, 80, 12)
    ),
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal in capitals": lambda text: text.encode().hex().upper(),
    "hexadecimal in columns": lambda text: text.encode().hex(" "),
    "percent signs": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "some percent signs": lambda text: f"https://evil.test/?q={quote(text, safe='')}%20",
    "in JSON": lambda text: json.dumps({"value": json.dumps(text)}),
    "letter by letter": spread,
    "on lines of its own": lambda text: "\n".join(text),
    "the first half": lambda text: text[: len(text) // 2 + 2],
    "the second half": lambda text: text[len(text) // 2 :],
}
WAYS: dict[str, Callable[[str], Call]] = {
    "reply": lambda text: Call("reply", content=text),
    "card title": lambda text: Call("reply", content="ok", cards=[{"title": text}]),
    "card text": lambda text: Call("reply", content="ok", cards=[{"description": text}]),
    "card field's name": lambda text: Call("reply", content="ok", cards=[{"fields": [{"name": text, "value": "x"}]}]),
    "card field": lambda text: Call("reply", content="ok", cards=[{"fields": [{"name": "x", "value": text}]}]),
    "card footer": lambda text: Call("reply", content="ok", cards=[{"title": "x", "footer": text}]),
    "card address": lambda text: Call("reply", content="ok", cards=[{"title": "x", "url": f"https://a.test/{text}"}]),
    "card picture": lambda text: Call(
        "reply", content="ok", cards=[{"title": "x", "image": f"https://a.test/?q={text}"}]
    ),
    "button": lambda text: _controls(buttons=[{"label": text}]),
    "button's id": lambda text: _controls(buttons=[{"label": "x", "custom_id": text}]),
    "button's address": lambda text: _controls(buttons=[{"label": "x", "url": f"https://a.test/{text}"}]),
    "choice": lambda text: _controls(options=[{"label": text}]),
    "choice's value": lambda text: _controls(options=[{"label": "x", "value": text}]),
    "choice's description": lambda text: _controls(options=[{"label": "x", "description": text}]),
    "choice's hint": lambda text: _controls(options=[{"label": "x"}], placeholder=text),
    "choice's id": lambda text: _controls(options=[{"label": "x"}], custom_id=text),
    "poll question": lambda text: Call("reply", content="ok", poll={"question": text, "answers": ["a", "b"]}),
    "poll answer": lambda text: Call("reply", content="ok", poll={"question": "x", "answers": ["a", text]}),
    "thread name": lambda text: Call("reply", content="ok", thread_name=text),
    "layout block": lambda text: Call("reply", content="ok", blocks=[{"type": "section", "text": {"text": text}}]),
    "layout block's key": lambda text: Call("reply", content="ok", blocks=[{"type": "section", text: "x"}]),
    "caption": lambda text: Call("send_file", file_path="plain.txt", caption=text),
    "another room": lambda text: Call("send_message_to_another_channel", target="fake:news", message=text),
    "job": lambda text: Call("cron", action="create", prompt=f"say {text}", interval_secs=3600),
    "job's target": lambda text: Call(
        "cron", action="create", prompt="say hi", interval_secs=3600, delivery_target=f"fake:{text}"
    ),
}  # fmt: skip
KEPT: dict[str, Callable[[str], Call]] = {  # nobody outside sees these, but they are written down
    "branch": lambda text: Call("branch", description=f"find out what {text} opens"),
    "worker": lambda text: Call("spawn_worker", task=f"use {text}"),
    "route": lambda text: Call("route", worker_id="nobody", message=text),
    "cancel": lambda text: Call("cancel", process_type="worker", process_id="nobody", reason=text),
    "unknown tool": lambda text: Call("leak", words=text),
    "wrong arguments": lambda text: Call("reply", _raw=f'{{"content": "{text}'),
}
FILES = {
    "file with it": ("secret.txt", f"the key: {TOOL_SECRET}"),
    "file with its code": ("coded.txt", base64.b64encode(TOOL_SECRET.encode()).decode()),
    "file named so": (f"{TOOL_SECRET}.txt", "nothing"),
    "file with a shape": ("shape.txt", SHAPED),
}


def _controls(**row: Any) -> Call:
    return Call("reply", content="ok", interactive_elements=[row])


def furnish(workspace: Path) -> None:
    (workspace / "plain.txt").write_text("nothing")
    for name, content in FILES.values():
        (workspace / name).write_text(content)


def _table() -> dict[str, Call]:
    calls = {f"reply, {name}, {n}": Call("reply", content=write(text)) for name, write in WRITINGS.items()
             for n, text in enumerate((TOOL_SECRET, SYSTEM_SECRET))}  # fmt: skip
    calls |= {f"{way}, {n}": make(text) for way, make in (WAYS | KEPT).items()
              for n, text in enumerate((TOOL_SECRET, base64.b64encode(f"a{SYSTEM_SECRET}".encode()).decode(), SHAPED))}  # fmt: skip
    calls |= {name: Call("send_file", file_path=file) for name, (file, _) in FILES.items()}
    return calls


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Act:
    return play(
        tmp_path_factory.mktemp("leaks") / "inst",
        _table(),
        by=ProcessKind.CHANNEL,
        prepare=furnish,
        is_direct=False,
        coalesce=AT_ONCE,
    )


@pytest.mark.spec("C-83", "CA-12")
@pytest.mark.parametrize("name", WRITINGS)
def test_no_answer_tells_a_secret_however_it_is_written(name: str, act: Act) -> None:
    for n in range(2):
        played = act.played[f"reply, {name}, {n}"]
        assert played.is_error, played
        assert "holds a secret" in played.text
        assert "call denied" in "".join(played.log)


@pytest.mark.parametrize("name", WAYS)
def test_nothing_that_goes_out_beside_the_words_tells_one(name: str, act: Act) -> None:
    for n in range(3):
        played = act.played[f"{name}, {n}"]
        assert played.is_error, (n, played)
        assert "holds a secret" in played.text, (n, played)
        assert "call denied" in "".join(played.log)


@pytest.mark.parametrize("name", FILES)
def test_no_file_tells_one(name: str, act: Act) -> None:
    assert act.played[name].is_error
    assert "call denied" in "".join(act.played[name].log)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_only_written_down_loses_it(name: str, act: Act) -> None:
    for n in range(3):
        assert not any(value in act.played[f"{name}, {n}"].text for value in (*FORBIDDEN, SHAPED))


def test_nobody_got_anything_and_nothing_of_it_was_kept(act: Act) -> None:
    assert act.said == []
    for value in (*FORBIDDEN, SHAPED):
        for shape in (value, value.encode().hex(), base64.b64encode(f"a{value}".encode()).decode()[4:-4]):
            assert shape not in act.everything, shape
    assert "secret kept out of the history" in act.everything
