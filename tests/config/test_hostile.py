"""Broken, hostile and huge files: they change nothing that runs, say where they are wrong, and are read in few steps.

Costs are bounded by counting steps of the interpreter, not by a clock.
"""

import os
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.base.errors import ConfigError, SpacebotError
from spacebot.base.redaction import MASK
from spacebot.config.edit import ConfigEditor
from spacebot.config.load import MAX_FILE_BYTES, load_config
from spacebot.config.masking import mask_text, unmask_text
from spacebot.config.store import ConfigStore

GOOD = "[defaults]\nmax_turns = 7\n"


def calls_of(work: Callable[[], object]) -> int:
    """How many of our functions a piece of work calls: a measure that no other program disturbs."""
    count = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def many_agents(count: int) -> str:
    return "".join(f'[[agents]]\nid = "a{i}"\n' for i in range(count))


def many_bindings(count: int) -> str:
    account = '[messaging.telegram]\ntoken = "12:abcdefgh"\n'
    return account + "".join(
        f'[[bindings]]\nagent_id = "main"\nchannel = "telegram"\nchat_id = {i}\n' for i in range(count)
    )


def both(count: int) -> str:
    bindings = '[[bindings]]\nagent_id = "a{}"\nchannel = "telegram"\nchat_id = {}\n'
    account = '[messaging.telegram]\ntoken = "12:abcdefgh"\n'
    return account + "".join(bindings.format(i, i) for i in range(count)) + many_agents(count)


def unknown_keys(count: int) -> str:
    return "[defaults]\n" + "".join(f"key{i} = 1\n" for i in range(count))


def web_of_fallbacks(count: int) -> str:
    lines = (f'"p/m{i}" = ["p/m{i + 1}", "p/m{i * 7 % count}"]\n' for i in range(count))
    return "[defaults.routing.fallbacks]\n" + "".join(lines)


def many_tokens(count: int) -> bytes:
    entry = b'[[messaging.telegram.instances]]\nname = "i%d"\ntoken = "%d:abcdefgh"\n'
    return b"".join(entry % (i, i) for i in range(count))


@pytest.mark.parametrize("make", [many_agents, many_bindings, both, unknown_keys, web_of_fallbacks])
def test_the_cost_of_a_file_grows_with_its_size_and_no_faster(tmp_path: Path, make: Callable[[int], str]) -> None:
    file = tmp_path / "config.toml"

    def cost(count: int) -> int:
        file.write_text(make(count))
        return calls_of(lambda: load_config(file, environ={}))

    cost(50)  # what is made once
    small, large = cost(200), cost(800)
    assert large < 6 * small


def test_ten_thousand_agents_and_bindings_are_read(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(both(10_000))
    config = load_config(file, environ={}).config
    assert (len(config.agents), len(config.bindings)) == (10_000, 10_000)


def test_warnings_and_problems_are_told_up_to_a_number(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(unknown_keys(5000))
    warnings = load_config(file, environ={}).warnings
    assert len(warnings) == 101
    assert warnings[-1] == "4900 more unknown keys are ignored"
    file.write_text("".join(f'[[agents]]\nid = "a{i}"\nmax_turns = 0\n' for i in range(500)))
    with pytest.raises(ConfigError, match=r"has 500 problems:(?s:.*)and 400 more$"):
        load_config(file, environ={})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x = 1\n" + b"#" * MAX_FILE_BYTES, "larger than"),
        (b"[x" + b".x" * 100_000 + b"]\n", "line 1: nested too deeply"),
        (b"ok = 1\n" + b'"a"' + b' . "b"' * 500_000 + b" = 1\n", "line 2: nested too deeply"),
        (b"x = " + b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"x = " + b"{a=" * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b"[defaults]\nmax_turns = 3\0\n", "line 2: not valid TOML"),
        (b"[defaults]\n# \xff\xfe\n", "line 2: not UTF-8"),
        ("[defaults]\nmax_turns = 3\n".encode("utf-16"), "not UTF-8"),
        (b"[defaults]\nmax_turns = 3\nmax_turns = 4\n", "line 3"),
        (b"[defaults]\nmax_turns = nan\n", "must be a finite number"),
        (b"[defaults.cortex]\ntick_interval_secs = inf\n", "must be a finite number"),
        (b"[defaults]\ncontext_window = 99999999999999999999999999\n", "must be at most 100000000"),
        (many_tokens(2000), "more than 1000 keys and tokens"),
        (b'[messaging.webhook]\nenabled = true\nport = 5738\n[[agents]]\nid = "../x"\n', "agents[../x].id"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused_with_its_place_and_costs_little(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(GOOD)
    store = ConfigStore.open(file)
    file.write_bytes(content)
    report = None

    def reload() -> None:
        nonlocal report
        report = store.reload()

    assert calls_of(reload) < 400_000
    assert report is not None
    assert report.error is not None
    assert words in report.error
    assert str(file) in report.error
    assert len(report.error) < 30_000
    assert store.current.default_agent.max_turns == 7


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n").encode(), GOOD.rstrip().encode()]
)
def test_marks_line_ends_and_missing_ones_do_not_matter_and_stay(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    assert load_config(file, environ={}).config.default_agent.max_turns == 7
    ConfigEditor(file).change_tables(lambda tables: tables["defaults"].update(max_turns=9))
    assert file.read_bytes() == content.replace(b"7", b"9")


async def test_a_pipe_a_folder_and_an_unreadable_file_do_not_stop_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(GOOD)
    store = ConfigStore.open(file)
    file.unlink()
    os.mkfifo(file)
    with trio.fail_after(20):  # opening a pipe waits for somebody who writes, for ever
        assert "not a regular file" in str((await store.refresh()).error)
    with pytest.raises(ConfigError, match="not a regular file"):
        ConfigEditor(file).change_tables(lambda tables: tables.clear())
    file.unlink()
    file.mkdir()
    assert "is a directory" in str((await store.refresh()).error)
    file.rmdir()
    file.symlink_to(file)
    assert "cannot be read" in str((await store.refresh()).error)
    file.unlink()
    file.write_text(GOOD.replace("7", "8"))

    def refused(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("spacebot.config.load.os.open", refused)
        assert "cannot be read (Permission denied)" in str((await store.refresh()).error)
    assert store.current.default_agent.max_turns == 7
    assert (await store.refresh()).changed
    assert store.current.default_agent.max_turns == 8


async def test_a_large_file_is_read_beside_the_loop_and_in_order(tmp_path: Path) -> None:
    """While one reading is under way the loop goes on, and a second waits for it."""
    file = tmp_path / "config.toml"
    file.write_text(GOOD)
    entered, go_on, where = threading.Event(), threading.Event(), []

    def load() -> Any:
        where.append(threading.current_thread())
        entered.set()
        if len(where) == 2:
            assert go_on.wait(20)
        return load_config(file, environ={})

    store = ConfigStore(load, load())
    entered.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.refresh)
        await trio.to_thread.run_sync(entered.wait, 20)
        file.write_text(GOOD.replace("7", "9"))
        nursery.start_soon(store.refresh)
        await trio.testing.wait_all_tasks_blocked()
        assert len(where) == 2  # the second has not begun
        go_on.set()
    assert store.current.default_agent.max_turns == 9
    assert threading.main_thread() not in where[1:]


def test_two_servers_on_one_port_are_told(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        "[api]\nport = 7000\n[messaging.webhook]\nenabled = true\nport = 7000\n[metrics]\nenabled = true\nport = 7001\n"
    )
    (warning,) = load_config(file, environ={}).warnings
    assert "api.port and messaging.webhook.port are both 7000" in warning
    file.write_text('[api]\nport = 7000\n[messaging.webhook]\nenabled = true\nport = 7000\nbind = "127.0.0.2"\n')
    assert load_config(file, environ={}).warnings == ()


def test_circles_of_fallbacks_are_told_once(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[defaults.routing.fallbacks]\n"demo/a" = ["demo/b"]\n"demo/b" = ["demo/a"]\n"demo/c" = ["demo/a"]\n'
    )
    (warning,) = load_config(file, environ={}).warnings
    assert "demo/a -> demo/b -> demo/a" in warning


@pytest.mark.parametrize(
    "spelling",
    ['"""\nsix-of-one\nhalf-a-dozen"""', '"six-of-one\\u000Ahalf-a-dozen"', "'''\nsix-of-one\nhalf-a-dozen'''"],
)
def test_a_key_is_hidden_however_it_is_spelt(spelling: str) -> None:
    original = f'# it\'s "theirs"\n[messaging.telegram]\ntoken = {spelling} # so\n'
    shown = mask_text(original)
    assert "half-a-dozen" not in shown
    assert tomllib.loads(unmask_text(shown, original)) == tomllib.loads(original)


PIECES = [
    "[defaults]\n", "[[agents]]\n", 'id = "a"\n', "max_turns = 3\n", "= = =\n", '"""', "'''", "\0", "\r", "[", "{",
    'token = "12:secret-of-someone"\n', "[messaging.telegram]\n", "# \u2028\n", "x.y.z = 1\n", "é = 1\n",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=14).map("".join))
def test_any_text_is_read_or_refused_and_never_shown_with_its_keys(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.mktemp("any") / "config.toml"
    file.write_bytes(text.encode(errors="replace"))
    words = ""
    try:
        load_config(file, environ={})
    except SpacebotError as error:
        words = str(error)
    assert not words or str(file) in words
    assert "secret-of-someone" not in words
    original = file.read_bytes().decode()
    shown = mask_text(original)
    assert "secret-of-someone" not in shown
    if MASK not in shown:  # a secret in a place where none belongs cannot be put back
        assert unmask_text(shown, original) == original
