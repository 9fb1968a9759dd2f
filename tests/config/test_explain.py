"""What counts for a key and where it comes from: agent, defaults, environment, secret store, built in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.base.errors import NotFoundError
from spacebot.config.explain import HIDDEN, effective_values, explain_key
from spacebot.config.load import load_config
from spacebot.config.schema import key_specs

FILE = """\
[llm]
openrouter_key = "env:ROUTER"
groq_key = "gsk-in-plain-text"
mistral_key = "env:NOT_SET"

[llm.provider.Mine]
api_type = "anthropic"
base_url = "https://models.example"
api_key = "secret:mine"

[defaults]
max_turns = 7
brave_search_key = "env:NOT_SET"
[defaults.routing]
channel = "demo/x"
branch = "env:NOT_SET"

[[agents]]
id = "ann"
[[agents]]
id = "bob"
max_turns = 9
[agents.routing]
worker = "env:WORKER"

[telemetry]
service_name = "from-the-file"

[messaging.discord]
enabled = false

[[mcp_servers]]
name = "one"
transport = "stdio"
command = "x"
env = { A = "in-plain-text", B = "${B}" }
"""
ENVIRON = {
    "ROUTER": "or-key-1234567", "WORKER": "demo/w", "OTEL_SERVICE_NAME": "traced", "SPACEBOT_MODEL": "demo/all",
    "BRAVE_SEARCH_API_KEY": "brave-key-123", "ANTHROPIC_API_KEY": "ant-key-123456", "MISTRAL_API_KEY": "mis-key-12345",
}  # fmt: skip


def sources(tmp_path: Path, agent_id: str | None = None) -> Mapping[str, tuple[Any, str]]:
    file = tmp_path / "config.toml"
    file.write_text(FILE)
    loaded = load_config(file, environ=ENVIRON, resolve_secret={"mine": "the-key-of-mine"}.get)
    values = effective_values(loaded, ENVIRON, agent_id=agent_id)
    shown = repr(values)
    for secret in ("gsk-in", "or-key", "brave-key", "ant-key", "mis-key", "the-key-of", "in-plain"):
        assert secret not in shown
    return {value.name: (value.value, value.source) for value in values}


@pytest.mark.spec("control 1.3: precedence")
@pytest.mark.parametrize(
    ("agent_id", "key", "value", "source"),
    [
        ("bob", "defaults.max_turns", 9, "agent bob"),
        ("ann", "defaults.max_turns", 7, "defaults"),
        ("ann", "defaults.branch_max_turns", 50, "built-in"),
        ("ann", "defaults.routing.channel", "demo/x", "defaults"),
        ("ann", "defaults.routing.branch", "demo/all", "environment SPACEBOT_MODEL"),  # the file's own leads nowhere
        ("bob", "defaults.routing.worker", "demo/w", "environment WORKER (named by agent bob)"),
        ("ann", "defaults.routing.worker", "demo/all", "environment SPACEBOT_MODEL"),
        ("ann", "defaults.brave_search_key", HIDDEN, "environment BRAVE_SEARCH_API_KEY"),
        ("ann", "llm.openrouter_key", HIDDEN, "environment ROUTER (named by file)"),
        ("ann", "llm.groq_key", HIDDEN, "file"),
        ("ann", "llm.mistral_key", HIDDEN, "environment MISTRAL_API_KEY"),
        ("ann", "llm.anthropic_key", HIDDEN, "environment ANTHROPIC_API_KEY"),
        ("ann", "llm.openai_key", None, "built-in"),
        ("ann", "llm.provider.Mine.api_key", HIDDEN, "secret store mine (named by file)"),
        ("ann", "llm.provider.Mine.base_url", "https://models.example", "file"),
        ("ann", "telemetry.service_name", "traced", "environment OTEL_SERVICE_NAME"),
        ("ann", "api.port", 5738, "built-in"),
        ("ann", "agents[2].id", "bob", "file"),
        ("ann", "mcp_servers[1].env", {"A": HIDDEN, "B": "${B}"}, "file"),
    ],
)
def test_each_level_is_named(tmp_path: Path, agent_id: str, key: str, value: Any, source: str) -> None:
    assert sources(tmp_path, agent_id)[key] == (value, source)


def test_every_plain_key_is_there_once_even_when_nothing_is_set(tmp_path: Path) -> None:
    loaded = load_config(tmp_path / "config.toml", environ={})
    values = effective_values(loaded, {})
    plain = {
        name for name in key_specs() if not name.startswith(("messaging.", "bindings.", "mcp_servers.", "agents."))
        and "cron." not in name and "<id>" not in name
    }  # fmt: skip
    assert [value.name for value in values] == [name for name in key_specs() if name in plain]
    assert {value.source for value in values} == {"built-in"}


def test_a_wrong_agent_or_key_says_what_there_is(tmp_path: Path) -> None:
    loaded = load_config(tmp_path / "config.toml", environ={})
    with pytest.raises(NotFoundError, match="there are: main"):
        effective_values(loaded, {}, agent_id="nobody")
    with pytest.raises(NotFoundError, match=r"did you mean defaults\.max_turns"):
        explain_key(loaded, {}, "max_trns")


LEVELS = st.fixed_dictionaries(
    {}, optional={level: st.sampled_from(["demo/a", "demo/b", "env:SET", "env:UNSET", ""]) for level in ("own", "all")}
)


@settings(max_examples=60, deadline=None)
@given(levels=LEVELS, has_variable=st.booleans())
def test_the_source_that_is_named_is_the_one_that_counts(
    tmp_path_factory: pytest.TempPathFactory, levels: dict[str, str], has_variable: bool
) -> None:
    """Against a rule of its own: the first level that says something."""
    file = tmp_path_factory.mktemp("levels") / "config.toml"
    lines = {level: f'worker = "{text}"' for level, text in levels.items()}
    below, own = lines.get("all", ""), lines.get("own", "")
    file.write_text(f"[defaults.routing]\n{below}\n[[agents]]\nid = 'main'\n[agents.routing]\n{own}\n")
    environ = {"SET": "demo/set"} | ({"SPACEBOT_WORKER_MODEL": "demo/variable"} if has_variable else {})
    loaded = load_config(file, environ=environ)
    _, (found,) = explain_key(loaded, environ, "routing.worker")

    wanted: tuple[str | None, str] = ("demo/variable", "environment") if has_variable else (None, "built-in")
    for level, name in (("all", "defaults"), ("own", "agent")):
        match levels.get(level):
            case "env:SET":
                wanted = ("demo/set", "environment")
            case "demo/a" | "demo/b" as text:
                wanted = (text, name)
    assert (found.value, str(found.origin)) == wanted
    assert loaded.config.agents[0].routing.worker == wanted[0]
