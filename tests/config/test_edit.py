"""Edits of the owner's file: comments and order stay, broken results change nothing."""

import difflib
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.base.errors import ConfigError, NotFoundError, RefusedError, SpacebotError
from spacebot.config.edit import BindingIdentity, ConfigEditor
from spacebot.config.load import LoadedConfig, load_config

FILE = """\
# my bot
[api]
port = 5739   # not the usual one

[messaging.telegram]
# from the father of bots
token = "1:abc"  # the token
dm_allowed_users = [
  "1",  # ann
  "2",
]

# who answers where
[[bindings]] # the first
agent_id = "main"
channel = "telegram"
chat_id = -100  # the team

[messaging.webhook]
enabled = true

[[bindings]]
# the second
agent_id = "main"
channel = "webhook"
channel_ids = ["a"]

[[bindings]]
agent_id = "main"
channel = "webhook"
channel_ids = ["b"]

[[agents]]
id = "main"
# the end
"""
TEAM = BindingIdentity(agent_id="main", channel="telegram", chat_id="-100")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(FILE)
    path.chmod(0o640)
    return path


def changes(path: Path, before: str = FILE) -> list[str]:
    """Lines that went and came."""
    lines = difflib.ndiff(before.splitlines(), path.read_text().splitlines())
    return [line[0] + line[2:] for line in lines if line[0] in "+-"]


def tables(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def test_a_key_changes_and_everything_else_stays(path: Path) -> None:
    ConfigEditor(path).set_account("telegram", {"token": "2:new", "enabled": False, "dm_allowed_users": ["1", "2"]})

    assert changes(path) == [
        '-token = "1:abc"  # the token',
        '+token = "2:new"  # the token',
        "+enabled = false",
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [file.name for file in path.parent.iterdir()] == ["config.toml"]


def test_a_key_is_taken_away(path: Path) -> None:
    ConfigEditor(path).set_account("telegram", {"dm_allowed_users": None, "streaming": None})

    assert "dm_allowed_users" not in tables(path)["messaging"]["telegram"]
    assert "# from the father of bots" in path.read_text()


def test_accounts_and_instances_are_added_and_taken_away(path: Path) -> None:
    editor = ConfigEditor(path)
    editor.set_account("slack", {"bot_token": "xoxb-1", "app_token": "xapp-1"})
    editor.set_account("telegram:ops", {"token": "3:c"})
    editor.set_account("telegram:Two", {"token": "4:d"})
    editor.set_account("telegram:OPS", {"enabled": False})
    editor.set_account("twitch:stage", {"username": "u", "oauth_token": "o"})
    editor.add_binding({"agent_id": "main", "channel": "telegram", "adapter": "ops"})

    messaging = tables(path)["messaging"]
    assert messaging["telegram"]["instances"] == [
        {"name": "ops", "token": "3:c", "enabled": False},
        {"name": "Two", "token": "4:d"},
    ]
    assert [key for _, key, _ in load_config(path, environ={}).config.messaging.accounts()] == [
        "slack", "telegram", "telegram:ops", "telegram:Two", "twitch:stage", "webhook",
    ]  # fmt: skip
    editor.remove_account("telegram:ops")
    assert len(editor.bindings()) == 3
    editor.remove_account("telegram:two")
    editor.remove_account("twitch:stage")
    editor.remove_account("slack")
    assert tables(path) == tomllib.loads(FILE)
    assert [line for line in changes(path) if line.strip("+-")] == []


def test_a_platform_is_taken_away_with_all_its_bindings(path: Path) -> None:
    ConfigEditor(path).remove_account("webhook")
    assert list(tables(path)["messaging"]) == ["telegram"]
    assert [binding["channel"] for binding in tables(path)["bindings"]] == ["telegram"]
    ConfigEditor(path).remove_account("telegram")

    assert tables(path) == {"api": {"port": 5739}, "agents": [{"id": "main"}]}
    with pytest.raises(NotFoundError, match=r"there is no \[messaging.telegram\]"):
        ConfigEditor(path).remove_account("telegram")


def test_bindings_are_added_replaced_and_removed_in_their_place(path: Path) -> None:
    editor = ConfigEditor(path)
    editor.add_binding(
        {"agent_id": "main", "channel": "telegram", "chat_id": None, "adapter": "", "channel_ids": (),
         "require_mention": False, "dm_allowed_users": ["9"], "authority": []}
    )  # fmt: skip
    assert editor.bindings()[-1] == {
        "agent_id": "main", "channel": "telegram", "dm_allowed_users": ["9"], "authority": [],
    }  # fmt: skip
    editor.replace_binding(TEAM, {"agent_id": "main", "channel": "telegram", "chat_id": "-7", "require_mention": True})
    assert editor.bindings()[0] == {
        "agent_id": "main", "channel": "telegram", "chat_id": "-7", "require_mention": True,
    }  # fmt: skip
    assert 'chat_id = "-7" # the team' in path.read_text().replace("  #", " #")
    editor.remove_binding(BindingIdentity(agent_id="main", channel="webhook", index=1))
    assert [binding.get("channel_ids") for binding in editor.bindings()] == [None, ["b"], None]
    assert "# who answers where" in path.read_text()


@pytest.mark.spec("control 4.7: five fields may mean two bindings")
def test_a_binding_that_may_be_one_of_two_is_asked_for_by_its_place(path: Path) -> None:
    editor = ConfigEditor(path)
    both = BindingIdentity(agent_id="main", channel="webhook")
    with pytest.raises(RefusedError, match=r"2 bindings look like that \(numbers \[1, 2\]\); name one by its 'index'"):
        editor.remove_binding(both)
    for wrong in (
        BindingIdentity(agent_id="main", channel="webhook", index=0),
        BindingIdentity(agent_id="main", channel="telegram"),
        BindingIdentity(agent_id="other", channel="webhook"),
        BindingIdentity(agent_id="main", channel="telegram", chat_id="-100", adapter="ops"),
    ):
        with pytest.raises(NotFoundError, match="may have been changed meanwhile"):
            editor.replace_binding(wrong, {"agent_id": "x", "channel": "webhook"})
    assert path.read_text() == FILE


@pytest.mark.spec("C-15")
def test_a_change_that_would_break_the_file_is_not_made(path: Path) -> None:
    editor = ConfigEditor(path)
    with pytest.raises(ConfigError) as caught:
        editor.set_account("telegram", {"api_url": "nonsense"})
    assert f"nothing was changed, because then: {path}: messaging.telegram.api_url = 'nonsense'" in str(caught.value)
    with pytest.raises(ConfigError, match="agent_id"):
        editor.add_binding({"channel": "telegram"})

    assert path.read_text() == FILE
    assert [file.name for file in path.parent.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[api\n", ConfigError, "line 1: not valid TOML"),
        ("messaging = 5\n", RefusedError, "'messaging' is no table"),
        ("bindings = 5\n", RefusedError, "'bindings' is no list of tables"),
    ],
)
def test_a_file_that_is_broken_already_is_left_to_its_owner(
    tmp_path: Path, text: str, error: type[SpacebotError], words: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(error, match=words):
        ConfigEditor(path).add_binding(
            {"agent_id": "main", "channel": "webchat"}, accounts={"telegram": {"token": "1:a"}}
        )
    assert path.read_text() == text


def test_a_new_file_is_private_and_keeps_what_the_environment_had_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "1:abc")
    path = tmp_path / "deep" / "config.toml"
    ConfigEditor(path).add_binding({"agent_id": "main", "channel": "telegram"})

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = load_config(path)
    assert [key for _, key, _ in loaded.config.messaging.accounts()] == ["telegram"]
    assert (len(loaded.config.bindings), loaded.warnings) == (1, ())
    path.unlink()
    ConfigEditor(path).set_account("telegram", {"enabled": False})
    assert [account.enabled for _, _, account in load_config(path).config.messaging.accounts()] == [False]
    path.unlink()
    ConfigEditor(path).remove_account("telegram")
    assert list(load_config(path).config.messaging.accounts()) == []


def test_a_link_stays_a_link_and_marks_and_line_ends_stay(tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_bytes(b"\xef\xbb\xbf[messaging.telegram]\r\ntoken = '1:a' # x\r\n\r\n[api]\r\nport = 1\r\n")
    link = tmp_path / "config.toml"
    link.symlink_to(real)
    ConfigEditor(link).set_account("telegram", {"token": "2:b"})

    assert link.is_symlink()
    assert real.read_bytes() == (b'\xef\xbb\xbf[messaging.telegram]\r\ntoken = "2:b" # x\r\n\r\n[api]\r\nport = 1\r\n')


def test_lines_that_only_look_like_headers_and_comments_are_left_alone(tmp_path: Path) -> None:
    text = (
        '[defaults]\nnote = """\n[messaging.telegram]\n\n# not a comment"""\nlists = [\n[1, 2],\n# inside\n\n[3]]\n'
        "[messaging . 'telegram'] # spaced\ntoken = '''\n1:a'''\n"
    )
    path = tmp_path / "config.toml"
    path.write_text(text)
    editor = ConfigEditor(path)
    editor.set_account("telegram", {"enabled": False})
    assert path.read_text() == text + "enabled = false\n"
    editor.add_binding({"agent_id": "main", "channel": "telegram"})
    editor.remove_account("telegram")
    assert path.read_text().strip() == text[: text.index("[messaging . ")].strip()


@pytest.mark.spec("C-15")
def test_what_somebody_saves_in_between_is_not_lost(path: Path) -> None:
    saves = 0

    def load(draft: Path) -> LoadedConfig:
        nonlocal saves
        saves += 1
        if saves == 1:
            path.write_text(path.read_text().replace("5739", "5740"))
        return load_config(draft, environ={})

    ConfigEditor(path, load=load).set_account("telegram", {"enabled": False})

    assert (saves, tables(path)["api"]["port"], tables(path)["messaging"]["telegram"]["enabled"]) == (2, 5740, False)


@pytest.mark.spec("C-15")
def test_changes_from_several_threads_are_all_made(path: Path) -> None:
    editor = ConfigEditor(path)

    def add(number: int) -> None:
        editor.add_binding({"agent_id": "main", "channel": "telegram", "chat_id": str(number)})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {binding.get("chat_id") for binding in editor.bindings()[3:]} == {str(number) for number in range(8)}


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be"):
        ConfigEditor(tmp_path / "file" / "config.toml").set_account("telegram", {"enabled": False})


def test_the_library_is_loaded_by_the_first_change_only(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from spacebot.config.edit import ConfigEditor\n"
        "editor = ConfigEditor(Path(sys.argv[1])); editor.bindings(); assert 'tomlkit' not in sys.modules\n"
        "editor.set_account('telegram', {'enabled': False}); assert 'tomlkit' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


LAYOUTS = [
    FILE,
    "",
    "# only a comment\n",
    'messaging = { telegram = { token = "1:a" } }\nbindings = [{ agent_id = "main", channel = "telegram" }]\n',
    '[messaging]\ntelegram.token = "1:a"\n[[bindings]]\nagent_id = "main"\nchannel = "telegram"\n',
    'messaging.telegram.token = "1:a"\n[[bindings]]\nagent_id = "main"\nchannel = "telegram"\n[api]\nport = 1\n',
    '[messaging.telegram]\ntoken = "1:a"\n[api]\nport = 1\n[messaging.telegram.unknown]\nx = 1\n[[bindings]]\n'
    'agent_id = "main"\nchannel = "telegram"\n[messaging.webhook]\nenabled = true\n',
    '[[messaging.telegram.instances]]\nname = "ops"\ntoken = "1:a"\n[messaging.webhook]\nenabled = true\n',
]
STEPS: list[Callable[[ConfigEditor], None]] = [
    lambda e: e.set_account("telegram", {"token": "9:z", "enabled": True}),
    lambda e: e.set_account("telegram", {"enabled": False}),
    lambda e: e.set_account("telegram:ops", {"token": "8:y"}),
    lambda e: e.set_account("webhook", {"enabled": True, "port": 0}),
    lambda e: e.remove_account("telegram:ops"),
    lambda e: e.remove_account("telegram"),
    lambda e: e.remove_account("webhook"),
    lambda e: e.add_binding({"agent_id": "main", "channel": "telegram", "channel_ids": ["1", "2"]}),
    lambda e: e.add_binding({"agent_id": "main", "channel": "webhook"}, accounts={"webhook": {"enabled": True}}),
    lambda e: e.remove_binding(BindingIdentity(agent_id="main", channel="telegram", index=0)),
    lambda e: e.replace_binding(
        BindingIdentity(agent_id="main", channel="telegram"),
        {"agent_id": "main", "channel": "telegram", "chat_id": "5"},
    ),
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LAYOUTS), st.lists(st.sampled_from(range(len(STEPS))), max_size=5))
def test_whatever_the_layout_a_change_is_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, layout: str, steps: list[int]
) -> None:
    path = tmp_path_factory.mktemp("layout") / "config.toml"
    path.write_text(layout)
    editor = ConfigEditor(path, load=lambda draft: load_config(draft, environ={}))
    for step in steps:
        before = path.read_bytes()
        try:
            STEPS[step](editor)
        except (NotFoundError, RefusedError, ConfigError):
            assert path.read_bytes() == before
        load_config(path, environ={})
    assert "only a person" not in path.read_text()
    comments = [line for line in layout.splitlines() if line.startswith("# my bot")]
    assert all(comment in path.read_text() for comment in comments)
