"""Single keys of the owner's file are set and taken away; whatever its layout, the rest stays to the letter."""

import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.base.errors import BusyError, ConfigError
from spacebot.config.change import parse_value, place_of, setting
from spacebot.config.edit import ConfigEditor
from spacebot.config.schema import find_key

LAYOUTS = {
    "headers": """\
[defaults]
max_turns = 7 # a

[defaults.routing] # b
channel = 'demo/a'

[defaults.routing.task_overrides]
coding = 'demo/c'
""",
    "inline": """\
[defaults]
max_turns = 7 # a
routing = { channel = 'demo/a', task_overrides = { coding = 'demo/c' } } # b
""",
    "dotted": """\
[defaults]
max_turns = 7 # a
routing.channel = 'demo/a' # b
routing.task_overrides.coding = 'demo/c'
""",
    "root": "defaults.max_turns = 7 # a\ndefaults.routing.channel = 'demo/a' # b\n",
    "nothing": "# a\n# b\n",
    "late": "[api]\nport = 6000 # a\n[defaults.routing] # b\nchannel = 'demo/a'\n[defaults]\nmax_turns = 7\n",
}
AGENT = """
# before the agents
[[agents]]
id = 'main' # c

[agents.browser]
enabled = false

[[agents]]
id = 'bob'
# the end
"""
VALUES: dict[tuple[str, ...], st.SearchStrategy[Any]] = {
    ("max_turns",): st.integers(1, 50),
    ("routing", "channel"): st.sampled_from(["demo/x", "demo/é\"'\\"]),
    ("routing", "voice"): st.just("demo/v"),
    ("routing", "task_overrides", "coding"): st.just("demo/n"),
    ("routing", "task_overrides", "a b"): st.just("demo/q"),
    ("routing", "fallbacks"): st.just({"demo/x": ["demo/y"]}),
    ("routing", "prompt_routing", "tiers", "light"): st.just("demo/l"),
    ("browser", "enabled"): st.booleans(),
    ("coalesce", "debounce_ms"): st.integers(0, 1000),
    ("sandbox", "writable_paths"): st.just(["/srv/a", "/srv/b"]),
}
CHANGES = st.lists(
    st.sampled_from(list(VALUES)).flatmap(lambda place: st.tuples(st.just(place), st.none() | VALUES[place])),
    min_size=1, max_size=6,
)  # fmt: skip


def applied(tables: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    """What a change means, told in another way: by rebuilding the table."""
    if len(place) > 1:
        inner = dict(tables.get(place[0], {}))
        applied(inner, place[1:], value)
        if inner or place[0] in tables:
            tables[place[0]] = inner
    elif value is None:
        tables.pop(place[0], None)
    else:
        tables[place[0]] = value


def full(value: Any) -> Any:
    """Without tables that hold nothing: whether their header stays does not matter."""
    if isinstance(value, dict):
        inner = {key: full(one) for key, one in value.items()}
        return {key: one for key, one in inner.items() if one != {}}
    return [full(one) for one in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None)
@given(layout=st.sampled_from(list(LAYOUTS)), changes=CHANGES, agent=st.sampled_from([None, "main", "bob"]))
def test_any_change_of_any_layout_says_what_was_meant(
    tmp_path_factory: pytest.TempPathFactory, layout: str, changes: list[Any], agent: str | None
) -> None:
    file = tmp_path_factory.mktemp("layout") / "config.toml"
    text = LAYOUTS[layout] + AGENT
    file.write_text(text)
    editor, wanted = ConfigEditor(file, environ={}), tomllib.loads(text)
    for place, value in changes:
        editor.change_tables(setting({place: value}, agent_id=agent, is_inherited=True))
        table = wanted.setdefault("defaults", {}) if agent is None else wanted["agents"][0 if agent == "main" else 1]
        applied(table, place, value)
        assert full(tomllib.loads(file.read_text())) == full(wanted)
    changed = file.read_text()
    has_left = any(place == ("max_turns",) and value is None for place, value in changes)  # and its comment with it
    for comment in ("# a", "# before the agents", "# c", "# the end"):
        assert comment in changed or (comment == "# a" and has_left)


def test_editors_of_several_programs_lose_nothing(tmp_path: Path) -> None:
    """Each has a lock of its own, as the command line and the program have."""
    file = tmp_path / "config.toml"
    file.write_text("# mine\n[defaults.routing]\n")
    failures: list[BaseException] = []

    def work(who: str) -> None:
        editor = ConfigEditor(file, environ={})
        try:
            for number in range(15):
                change = setting({("routing", "task_overrides", f"{who}{number}"): "demo/x"}, is_inherited=True)
                while True:
                    try:
                        editor.change_tables(change)
                        break
                    except ConfigError as error:
                        if "by somebody else" not in str(error):
                            raise
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(tomllib.loads(file.read_text())["defaults"]["routing"]["task_overrides"]) == 45
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_text_replaces_only_the_one_that_it_was_made_from(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    editor = ConfigEditor(file, environ={})
    assert editor.replace_text("[api]\nport = 1\n", before="") is None
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    kept = ConfigEditor(link, environ={}).replace_text("[api]\nport = 2\n", before="[api]\nport = 1\n")
    assert kept == tmp_path / "config.toml.bak"
    assert link.is_symlink()
    assert kept.read_text() == "[api]\nport = 1\n"
    with pytest.raises(BusyError, match="changed meanwhile"):
        editor.replace_text("[api]\nport = 3\n", before="[api]\nport = 1\n")
    with pytest.raises(ConfigError, match="nothing was changed"):
        editor.replace_text("[api]\nport = -3\n", before="[api]\nport = 2\n")
    assert file.read_text() == "[api]\nport = 2\n"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("max_turns", "9", 9),
        ("browser.enabled", "false", False),
        ("routing.channel", "demo/x", "demo/x"),
        ("routing.channel", "'demo/x'", "demo/x"),
        ("telemetry.service_name", "5", "5"),
        ("telemetry.service_name", "true", "true"),
        ("telemetry.sample_rate", "0.5", 0.5),
        ("api.allowed_origins", "https://a.example, https://b.example", ["https://a.example", "https://b.example"]),
        ("api.allowed_origins", '["https://a.example"]', ["https://a.example"]),
        ("permissions.file_read", "workspace", "workspace"),
        ("permissions.network_allow_private", "true", True),
        ("llm.groq_key", "secret:groq", "secret:groq"),
        ("routing.fallbacks", '{ "demo/a" = ["demo/b"] }', {"demo/a": ["demo/b"]}),
        ("api.bind", "::1", "::1"),
        ("max_turns", "env:TURNS", "env:TURNS"),
    ],
)
def test_words_become_values_of_the_kind_that_the_key_has(key: str, text: str, value: Any) -> None:
    assert parse_value(find_key(key), text) == value


@pytest.mark.parametrize(
    ("name", "agent", "place", "whose"),
    [
        ("max_turns", None, ("max_turns",), None),
        ("max_turns", "bob", ("max_turns",), "bob"),
        ("agents.bob.routing.worker", None, ("routing", "worker"), "bob"),
        ("api.port", None, ("api", "port"), None),
        ("llm.provider.Mine.base_url", None, ("llm", "provider", "Mine", "base_url"), None),
        ('task_overrides."a.b"', None, ("routing", "task_overrides", "a.b"), None),
    ],
)
def test_a_name_leads_to_its_place(name: str, agent: str | None, place: tuple[str, ...], whose: str | None) -> None:
    assert place_of(name, agent)[1:] == (place, whose)
