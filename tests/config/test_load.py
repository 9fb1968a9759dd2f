"""From file and environment to a configuration."""

import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spacebot.base import redaction
from spacebot.base.errors import ConfigError
from spacebot.config.load import LoadedConfig, load_config
from spacebot.config.model import ApiType
from spacebot.config.provider_table import provider_table


@pytest.fixture
def load(tmp_path: Path):
    def load(text: str, environ: Mapping[str, str] | None = None, **secrets: str) -> LoadedConfig:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load_config(path, environ=environ or {}, resolve_secret=secrets.get)

    return load


def problems(load, text: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, environ)
    return str(caught.value)


README_MINIMAL = """
[llm]
openrouter_key = "env:OPENROUTER_API_KEY"
[defaults.routing]
channel = "anthropic/claude-sonnet-4"
worker = "anthropic/claude-sonnet-4"
[[agents]]
id = "my-agent"
[messaging.discord]
token = "env:DISCORD_BOT_TOKEN"
[[bindings]]
agent_id = "my-agent"
channel = "discord"
guild_id = "your-discord-guild-id"
"""


@pytest.mark.spec("control 7: README config blocks")
def test_the_readme_sample_connects_as_it_stands(load) -> None:
    token = "MTA5NDQ2NzE4MjQ1Njc4OTAxMg.GabcdE.abcdefghijklmnopqrstuvwxyz0123456789AB"
    loaded = load(README_MINIMAL, {"OPENROUTER_API_KEY": "or-key-123456", "DISCORD_BOT_TOKEN": token})

    assert [agent.id for agent in loaded.config.agents] == ["my-agent"]
    assert loaded.config.llm.provider["openrouter"].api_key.get_secret_value() == "or-key-123456"
    ((platform, key, account),) = loaded.config.messaging.accounts()
    assert (platform, key, account.enabled, account.token.get_secret_value()) == ("discord", "discord", True, token)
    (binding,) = loaded.config.bindings
    assert (binding.agent_id, binding.guild_id) == ("my-agent", "your-discord-guild-id")
    (warning,) = loaded.warnings  # the sample's id is a placeholder
    assert "'bindings[#1].guild_id' = 'your-discord-guild-id' never matches" in warning


def test_without_a_file_the_environment_decides(tmp_path: Path) -> None:
    environ = {
        "ANTHROPIC_API_KEY": "sk-something-long",
        "SPACEBOT_MODEL": "anthropic/a",
        "SPACEBOT_WORKER_MODEL": "anthropic/b",
    }
    loaded = load_config(tmp_path / "config.toml", environ=environ)

    routing = loaded.config.default_agent.routing
    assert (routing.channel, routing.branch) == ("anthropic/a", "anthropic/a")
    assert (routing.worker, routing.compactor, routing.cortex) == ("anthropic/b",) * 3
    assert list(loaded.config.llm.provider) == ["anthropic", "demo"]
    assert (loaded.warnings, loaded.content_hash) == ((), "")


@pytest.mark.spec("C-20")
def test_the_file_wins_over_the_environment(load) -> None:
    loaded = load('[defaults.routing]\nchannel = "demo/x"', {"SPACEBOT_CHANNEL_MODEL": "demo/y"})

    assert loaded.config.default_agent.routing.channel == "demo/x"


@pytest.mark.spec("control 8.1.2", "C-2")
@pytest.mark.parametrize("entry", [e for e in provider_table().values() if e.key], ids=lambda e: e.id)
def test_every_shorthand_key_gives_a_provider_by_file_and_by_environment(load, entry) -> None:
    by_file = load(f'[llm]\n{entry.key} = "a-long-enough-key"').config.llm.provider[entry.id]
    by_environment = load("", {entry.env: "a-long-enough-key"}).config.llm.provider[entry.id]

    assert by_file == by_environment
    assert (by_file.api_type, by_file.base_url) == (entry.api_type, entry.base_url)


def test_a_provider_without_its_key_is_disabled_with_a_warning(load) -> None:
    loaded = load(
        """
        [llm]
        groq_key = "env:NOT_SET"
        [llm.provider.mine]
        api_type = "anthropic"
        base_url = "https://models.example"
        api_key = "secret:gone"
        """
    )

    assert list(loaded.config.llm.provider) == ["demo"]
    assert "provider 'groq' is disabled" in loaded.warnings[0]
    assert "NOT_SET is not set" in loaded.warnings[0]
    assert "provider 'mine' is disabled: the secret store has no 'gone'" in loaded.warnings[1]


def test_an_unset_variable_falls_back_to_the_keys_own(load) -> None:
    loaded = load('[llm]\ngroq_key = "env:NOT_SET"', {"GROQ_API_KEY": "fallback-key"})

    assert loaded.config.llm.provider["groq"].api_key.get_secret_value() == "fallback-key"
    assert loaded.warnings == ()


def test_secrets_come_from_the_store_and_are_scrubbed_everywhere(load) -> None:
    loaded = load('[llm]\ngroq_key = "secret:groq"', groq="xyzzy-not-a-known-shape")

    assert loaded.config.llm.provider["groq"].api_key.get_secret_value() == "xyzzy-not-a-known-shape"
    assert "xyzzy" not in redaction.scrub("key=xyzzy-not-a-known-shape")
    assert "xyzzy" not in repr(loaded.config)


@pytest.mark.parametrize(
    "text",
    [
        '[[agents]]\nid = "main"\nworkspace = "secret:groq"',
        '[defaults.routing]\nchannel = "secret:groq"',
        '[llm.provider.mine]\napi_type = "openai_completions"\nbase_url = "http://h.example"\nname = "secret:groq"',
    ],
)
def test_a_secret_may_not_stand_where_values_are_shown(load, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, groq="xyzzy-not-a-known-shape")
    assert "cannot come from the secret store" in str(caught.value)
    assert "xyzzy" not in str(caught.value)


def test_an_explicit_table_wins_and_a_pasted_version_is_dropped_once(load) -> None:
    loaded = load(
        """
        [llm]
        openai_key = "shorthand-key"
        ollama_base_url = "http://box:11434/v1/"
        [llm.providers.OpenAI]
        api_type = "openai_completions"
        base_url = "https://proxy.example/v1/v1/"
        api_key = "explicit-key"
        [llm."provider.local"]
        api_type = "openai_chat_completions"
        base_url = "http://localhost:8000/v1"
        """
    )

    providers = loaded.config.llm.provider
    assert providers["openai"].api_key.get_secret_value() == "explicit-key"
    assert providers["openai"].base_url == "https://proxy.example/v1"
    assert providers["ollama"].base_url == "http://box:11434"
    assert (providers["local"].base_url, providers["local"].api_key) == ("http://localhost:8000/v1", None)
    assert list(providers) == ["openai", "ollama", "local", "demo"]


def test_an_agent_overrides_field_by_field_and_fallbacks_as_a_whole(load) -> None:
    loaded = load(
        """
        [defaults]
        max_turns = 7
        branch_max_turns = 9
        [defaults.routing]
        channel = "demo/a"
        worker = "demo/b"
        [defaults.routing.task_overrides]
        coding = "demo/c"
        [defaults.routing.fallbacks]
        "demo/a" = ["demo/b"]
        [[agents]]
        id = "one"
        max_turns = 3
        workspace = "work"
        [agents.routing]
        channel = "demo/z"
        task_overrides = { writing = "demo/d" }
        fallbacks = { "demo/z" = ["demo/a"] }
        """
    )

    agent = loaded.config.agents[0]
    assert (agent.max_turns, agent.branch_max_turns, agent.context_window) == (3, 9, 128_000)
    assert (agent.routing.channel, agent.routing.worker) == ("demo/z", "demo/b")
    assert agent.routing.task_overrides == {"coding": "demo/c", "writing": "demo/d"}
    assert agent.routing.fallbacks == {"demo/z": ("demo/a",)}
    assert agent.workspace is not None
    assert agent.workspace.is_absolute()


@pytest.mark.spec("control 8.1.1", "C-1")
def test_unknown_keys_are_named_in_full_with_the_nearest_known_one(load, tmp_path: Path) -> None:
    loaded = load(
        """
        max_turns = 1
        [api]
        prot = 1
        [llm]
        antropic_key = "x"
        [llm.provider.mine]
        api_type = "anthropic"
        base_url = "https://models.example"
        api_kee = "x"
        [defaults.coalesce]
        debounce = 5
        [[agents]]
        id = "one"
        routin = {}
        """
    )

    file = tmp_path / "config.toml"
    assert loaded.warnings == (
        f"{file}: unknown key 'max_turns' is ignored; it belongs into [defaults]",
        f"{file}: unknown key 'api.prot' is ignored; did you mean 'port'?",
        f"{file}: unknown key 'llm.antropic_key' is ignored; did you mean 'anthropic_key'?",
        f"{file}: unknown key 'llm.provider.mine.api_kee' is ignored; did you mean 'api_key'?",
        f"{file}: unknown key 'defaults.coalesce.debounce' is ignored; did you mean 'debounce_ms'?",
        f"{file}: unknown key 'agents[one].routin' is ignored; did you mean 'routing'?",
    )


def test_all_problems_are_told_at_once_in_plain_words(load, tmp_path: Path) -> None:
    text = problems(
        load,
        """
        [api]
        port = 99999
        bind = "everywhere"
        auth_token = 5
        [llm]
        anthropic_key = 7
        [llm.provider."bad id"]
        api_type = "anthropic"
        [llm.provider.mine]
        api_type = "telepathy"
        base_url = "models.example"
        [defaults]
        max_turns = "many"
        [[agents]]
        id = "Not Allowed"
        default = true
        user_timezone = "Mars/Olympus"
        [[agents]]
        id = "two"
        default = true
        max_turns = 0
        [[agents]]
        id = "two"
        """,
    )

    assert text.splitlines()[0] == f"{tmp_path / 'config.toml'} has 13 problems:"
    for expected in (
        "api.port = 99999: must be at most 65535",
        "api.bind = 'everywhere': must be an IP address",
        "api.auth_token = (hidden): must be text in quotes",
        'llm.provider."bad id": a provider\'s id has',
        "llm.anthropic_key = (hidden): must be text in quotes",
        "llm.provider.mine.api_type = 'telepathy': must be 'anthropic', 'openai_completions'",
        "llm.provider.mine.base_url = 'models.example': must be an absolute http or https URL",
        "defaults.max_turns = 'many': must be a whole number",
        "agents[Not Allowed].user_timezone = 'Mars/Olympus': time zone",
        "agents[Not Allowed].id = 'Not Allowed': agent id",
        "agents[two].max_turns = 0: must be at least 1",
        "agents: two agents have the id 'two'",
        "agents: Not Allowed and two have default = true",
    ):
        assert expected in text


def test_a_wrong_default_is_told_once_not_for_every_agent(load) -> None:
    text = problems(load, '[defaults]\nmax_turns = 0\n[[agents]]\nid = "a"\n[[agents]]\nid = "b"\n')

    assert text.count("must be at least 1") == 1


def test_a_value_from_the_environment_is_named_not_shown(load) -> None:
    text = problems(load, '[api]\nport = "env:THE_PORT"', {"THE_PORT": "hunter2"})

    assert "api.port = 'env:THE_PORT': must be a whole number" in text
    assert "hunter2" not in text


def test_metrics_are_off_until_wanted_and_may_be_open(load) -> None:
    metrics = load("").config.metrics
    assert (metrics.enabled, metrics.port, metrics.bind) == (False, 9090, "127.0.0.1")
    loaded = load('[metrics]\nenabled = true\nport = 9999\nbind = "[::]"\nprot = 1')
    assert (loaded.config.metrics.port, loaded.config.metrics.bind) == (9999, "::")
    assert "'metrics.prot'" in loaded.warnings[0]
    assert "metrics.bind = 'everywhere': must be an IP address" in problems(load, '[metrics]\nbind = "everywhere"')


def test_an_open_bind_needs_a_token(load) -> None:
    assert "api.auth_token" in problems(load, '[api]\nbind = "0.0.0.0"')
    assert load('[api]\nbind = "[::]"\nauth_token = "long-enough"').config.api.bind == "::"


def test_thresholds_must_rise(load) -> None:
    text = problems(load, "[defaults.compaction]\nbackground_threshold = 0.9")

    assert "defaults.compaction: must rise" in text


@pytest.mark.spec("C-4")
def test_a_route_to_a_provider_that_is_not_there_is_a_warning_with_the_remedy(load) -> None:
    (warning,) = load('[defaults.routing]\nchannel = "groq/x"\nworker = "groq/x"').warnings

    assert "provider 'groq' is not usable" in warning
    assert "set llm.groq_key or GROQ_API_KEY" in warning


def test_a_circle_of_fallbacks_is_a_warning(load) -> None:
    (warning,) = load('[defaults.routing.fallbacks]\n"demo/a" = ["demo/b"]\n"demo/b" = ["demo/a"]').warnings

    assert "demo/a -> demo/b -> demo/a" in warning


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"[api]\nport = = 3\n", "config.toml, line 2: not valid TOML"),
        (b"[api\n", "config.toml, line 1: not valid TOML"),
        (b"a = 1\na = 2\n", "config.toml, line 2: not valid TOML"),
        (b"# \xff\n", "config.toml, line 1: not UTF-8"),
        (b"ok = 1\nname = '\xe9'\n", "config.toml, line 2: not UTF-8"),
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"llm = 3\n", "llm = 3: must be a table"),
        (b"[agents]\nid = 'x'\n", "[[agents]] with two brackets"),
        (b"agents = [1]\n", "[[agents]] with two brackets"),
        (b"[llm]\nprovider = 1\n", "must hold tables"),
    ],
)
def test_a_broken_file_is_told_with_its_place(tmp_path: Path, raw: bytes, expected: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(path, environ={})


def test_a_directory_or_an_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load_config(tmp_path, environ={})
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(loop, environ={})
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(fifo, environ={})


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[defaults]\r\nmax_turns = 4\r\n")

    assert load_config(path, environ={}).config.default_agent.max_turns == 4


def test_the_demo_provider_always_exists(load) -> None:
    assert load("").config.llm.provider["demo"].api_type is ApiType.DEMO


KEYS = st.one_of(
    st.sampled_from(
        ["api", "llm", "defaults", "agents", "routing", "provider", "providers", "provider.x", "port", "id", "default",
         "fallbacks", "coalesce", "anthropic_key", "ollama_base_url", "base_url", "api_type", "messaging", "workspace",
         "bindings", "discord", "slack", "telegram", "twitch", "webhook", "instances", "name", "token", "bot_token",
         "app_token", "commands", "agent_id", "channel", "channel_ids", "adapter", "guild_id"]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF), max_size=8),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(
        st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(), st.text(max_size=8), st.dates(),
        st.sampled_from(["env:A", "env:", "secret:", "secret:x", "demo", "a/b", "discord"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_table_gives_a_configuration_or_a_plain_error(tmp_path: Path, tables: dict[str, object]) -> None:
    path = tmp_path / "config.toml"
    path.write_text("".join(f"{_toml_key(k)} = {_toml(v)}\n" for k, v in tables.items()), encoding="utf-8")
    tomllib.loads(path.read_text(encoding="utf-8"))
    with suppress(ConfigError):
        assert load_config(path, environ={"A": "value"}).config.agents


def _toml_key(key: str) -> str:
    return '"' + "".join(f"\\u{ord(c):04x}" for c in key) + '"'


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return str(value)


@pytest.mark.parametrize("origin", ["http://127.0.0.1:9171/index.html", "127.0.0.1:9171", "x.com/path", "ftp://x.com"])
def test_a_page_that_may_frame_the_chat_is_named_by_its_origin(origin: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[api]\nallowed_origins = ["https://good.example:8443/", "{origin}"]\n')
    with pytest.raises(ConfigError, match="scheme, host and port"):
        load_config(file, environ={})
