"""`[llm]` from file and environment: explicit providers in every dialect, and what is wrong with them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from spacebot.base.errors import ConfigError
from spacebot.config.load import LoadedConfig, load_config
from spacebot.config.model import ApiType, ProviderConfig

Load = Callable[..., LoadedConfig]
AZURE = """
    [llm.provider.office]
    api_type = "azure"
    base_url = "{url}"
    api_key = "the-key-of-the-office"
    """


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str, environ: Mapping[str, str] | None = None) -> LoadedConfig:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load_config(path, environ=environ or {})

    return load


def own(api_type: str, url: str, rest: str = "") -> str:
    return f"""
        [llm.provider.Mine]
        api_type = "{api_type}"
        base_url = "{url}"
        api_key = "env:MY_KEY"
        {rest}
        """


@pytest.mark.parametrize(
    ("api_type", "written", "kept"),
    [
        ("openai_completions", "https://models.example/v1/", "https://models.example"),
        ("openai_responses", "https://models.example/v1", "https://models.example"),
        ("anthropic", "https://models.example/v1", "https://models.example"),
        ("openai_chat_completions", "https://models.example/v1/", "https://models.example/v1"),
        ("kilo_gateway", "https://gateway.example/api/", "https://gateway.example/api"),
        ("gemini", "https://proxy.example/gemini", "https://proxy.example/gemini"),
        (
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta",
            "https://generativelanguage.googleapis.com/v1beta/openai",
        ),
        (
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta/openai/",
            "https://generativelanguage.googleapis.com/v1beta/openai",
        ),
    ],
)
def test_a_provider_of_the_owners_own_in_every_dialect(load: Load, api_type: str, written: str, kept: str) -> None:
    loaded = load(own(api_type, written, 'name = "My models"'), {"MY_KEY": "a-key-of-mine"})

    provider = loaded.config.llm.provider["mine"]
    assert loaded.warnings == ()
    assert (provider.api_type, provider.base_url, provider.name) == (ApiType(api_type), kept, "My models")
    assert provider.api_key is not None
    assert provider.api_key.get_secret_value() == "a-key-of-mine"


@pytest.mark.spec("control 1.3: unresolved key of a custom provider", "C-5")
def test_an_own_provider_whose_key_leads_nowhere_is_left_out_and_the_others_stay(load: Load) -> None:
    loaded = load(own("openai_responses", "https://models.example"), {"GROQ_API_KEY": "a-key-of-groqs"})

    assert list(loaded.config.llm.provider) == ["groq", "demo"]
    assert loaded.config.llm.absent == {"mine": "environment variable MY_KEY is not set"}
    (warning,) = loaded.warnings
    assert "provider 'mine' is disabled: environment variable MY_KEY is not set" in warning


def test_azure_takes_its_own_keys(load: Load) -> None:
    text = AZURE.format(url="https://office.openai.azure.com/") + 'api_version = "2024-10-21"\ndeployment = "our-gpt"'
    provider = load(text).config.llm.provider["office"]

    assert (provider.api_version, provider.deployment) == ("2024-10-21", "our-gpt")
    assert provider.base_url == "https://office.openai.azure.com"


@pytest.mark.parametrize(
    "url",
    [
        "http://office.openai.azure.com",
        "https://office.example",
        "https://openai.azure.com.evil.example",
        "https://evil-openai.azure.com",
    ],
)
def test_a_key_for_azure_goes_to_no_other_host(load: Load, url: str) -> None:
    with pytest.raises(ConfigError, match=r"llm\.provider\.office: .*https://<resource>\.openai\.azure\.com"):
        load(AZURE.format(url=url))


def test_azure_without_a_key_is_left_out(load: Load) -> None:
    text = AZURE.format(url="https://office.openai.azure.com").replace("api_key", "# api_key")

    assert load(text).config.llm.absent == {"office": "it has no api_key"}


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ('deployment = "x"', "belong to api_type 'azure' only"),
        ('api_version = "../../x"', "api_version"),
        ("is_bearer = true", ""),
        ("has_login = true", ""),
    ],
)
def test_keys_that_do_not_belong_there_are_told(load: Load, rest: str, words: str) -> None:
    text = own("openai_completions", "https://models.example", rest)
    if words:
        with pytest.raises(ConfigError, match=words):
            load(text, {"MY_KEY": "a-key-of-mine"})
    else:
        loaded = load(text, {"MY_KEY": "a-key-of-mine"})
        assert "unknown key" in loaded.warnings[0]
        assert not loaded.config.llm.provider["mine"].is_bearer
        assert not loaded.config.llm.provider["mine"].has_login


def test_a_built_in_provider_may_speak_another_dialect(load: Load) -> None:
    loaded = load(
        '[llm]\nopenai_key = "not-this-one"\n[llm.provider.openai]\napi_type = "openai_responses"\napi_key = "k2"'
    )

    provider = loaded.config.llm.provider["openai"]
    assert (provider.api_type, provider.base_url) == (ApiType.OPENAI_RESPONSES, "https://api.openai.com")
    assert provider.api_key is not None
    assert provider.api_key.get_secret_value() == "k2"


def test_a_token_of_the_environment_is_a_bearers_only_where_no_key_is_given(load: Load) -> None:
    def anthropic(text: str, **environ: str) -> ProviderConfig:
        return load(text, environ).config.llm.provider["anthropic"]

    token = {"ANTHROPIC_AUTH_TOKEN": "token-of-a-proxy", "ANTHROPIC_BASE_URL": "https://proxy.example/"}
    by_token = anthropic("", **token)
    assert (by_token.is_bearer, by_token.base_url) == (True, "https://proxy.example")
    assert not anthropic("", **token, ANTHROPIC_API_KEY="a-real-key").is_bearer
    assert not anthropic('[llm]\nanthropic_key = "a-real-key"', **token).is_bearer


@pytest.mark.parametrize("provider", ["gemini", "anthropic", "mine"])
@pytest.mark.parametrize("url", ["http://[x", "http://x:99999"])
def test_an_address_that_is_none_is_named_whatever_else_is_asked_of_it(
    provider: str, url: str, load: Load, tmp_path: Path
) -> None:
    """A slip in a file that is read while the program runs must not end the program."""
    (tmp_path / "anthropic_oauth.json").write_text("{}")
    kind = provider if provider != "mine" else "openai_responses"
    with pytest.raises(ConfigError, match="must be an absolute http or https URL"):
        load(f'[llm.provider.{provider}]\napi_type = "{kind}"\nbase_url = "{url}"\napi_key = "a-key-of-mine"\n')
