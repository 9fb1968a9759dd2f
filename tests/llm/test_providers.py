"""Every provider of the table: a key in the file or the environment, and a request really goes where it belongs.

What is expected stands here in full, so that a slip in the table is seen. The addresses keep their paths and point to
stand-ins on this machine.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from spacebot.base.errors import ModelRejectedError
from spacebot.config.load import load_config
from spacebot.config.model import AgentSettings, ApiType, LlmConfig, ProviderConfig
from spacebot.config.provider_table import provider_table
from spacebot.config.routing import RoutingConfig
from spacebot.llm.access import is_lendable
from spacebot.llm.anthropic import AnthropicDialect
from spacebot.llm.dialect import AuthKind
from spacebot.llm.messages import ModelMessage, ProcessKind, Reasoning, Role, ToolCall, ToolResult
from spacebot.llm.openai_chat import OpenAiChatDialect
from spacebot.llm.openai_responses import OpenAiResponsesDialect
from spacebot.llm.opening import open_models
from spacebot.llm.routing import default_models, resolve
from spacebot.llm.transport import open_transport
from tests.llm.given import KEY, ask, custom, providers
from tests.stand_ins.anthropic import serve_anthropic
from tests.stand_ins.openai import serve_openai, serve_responses
from tests.stand_ins.serving import Answer, Refusal, Request

SECRET = "a-key-of-some-length-123"


@dataclass(frozen=True)
class Row:
    """What control spec 1.5.1 and 2.1 say of a provider."""

    key: str
    variable: str
    url: str
    is_messages: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    limit: str = "max_tokens"


CHAT = "/v1/chat/completions"
TITLE = {"x-title": "Spacebot"}
ROWS = {
    "anthropic": Row("anthropic_key", "ANTHROPIC_API_KEY", "https://api.anthropic.com/v1/messages", True),
    "openrouter": Row("openrouter_key", "OPENROUTER_API_KEY", f"https://openrouter.ai/api{CHAT}", headers=TITLE),
    "kilo": Row(
        "kilo_key",
        "KILO_API_KEY",
        "https://api.kilo.ai/api/gateway/chat/completions",
        headers=TITLE | {"http-referer": "https://spacebot.localhost/"},
    ),
    "openai": Row("openai_key", "OPENAI_API_KEY", f"https://api.openai.com{CHAT}", limit="max_completion_tokens"),
    "deepseek": Row("deepseek_key", "DEEPSEEK_API_KEY", f"https://api.deepseek.com{CHAT}"),
    "gemini": Row(
        "gemini_key",
        "GEMINI_API_KEY",
        "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
    ),
    "xai": Row("xai_key", "XAI_API_KEY", f"https://api.x.ai{CHAT}"),
    "groq": Row("groq_key", "GROQ_API_KEY", f"https://api.groq.com/openai{CHAT}"),
    "together": Row("together_key", "TOGETHER_API_KEY", f"https://api.together.xyz{CHAT}"),
    "fireworks": Row("fireworks_key", "FIREWORKS_API_KEY", f"https://api.fireworks.ai/inference{CHAT}"),
    "mistral": Row("mistral_key", "MISTRAL_API_KEY", f"https://api.mistral.ai{CHAT}"),
    "zhipu": Row("zhipu_key", "ZHIPU_API_KEY", "https://api.z.ai/api/paas/v4/chat/completions"),
    "ollama": Row("ollama_key", "OLLAMA_API_KEY", f"http://localhost:11434{CHAT}"),
    "opencode-zen": Row("opencode_zen_key", "OPENCODE_ZEN_API_KEY", f"https://opencode.ai/zen{CHAT}"),
    "opencode-go": Row("opencode_go_key", "OPENCODE_GO_API_KEY", f"https://opencode.ai/zen/go{CHAT}"),
    "nvidia": Row("nvidia_key", "NVIDIA_API_KEY", f"https://integrate.api.nvidia.com{CHAT}"),
    "minimax": Row("minimax_key", "MINIMAX_API_KEY", "https://api.minimax.io/anthropic/v1/messages", True),
    "minimax-cn": Row("minimax_cn_key", "MINIMAX_CN_API_KEY", "https://api.minimaxi.com/anthropic/v1/messages", True),
    "moonshot": Row(
        "moonshot_key", "MOONSHOT_API_KEY", f"https://api.moonshot.ai{CHAT}", headers={"user-agent": "KimiCLI/1.3"}
    ),
    "zai-coding-plan": Row(
        "zai_coding_plan_key", "ZAI_CODING_PLAN_API_KEY", "https://api.z.ai/api/coding/paas/v4/chat/completions"
    ),
    "github-copilot": Row(
        "github_copilot_key", "GITHUB_COPILOT_API_KEY", "https://api.githubcopilot.com/chat/completions"
    ),  # its exchange of keys is test_copilot's
}


def load(folder: Path, text: str = "", **environ: str) -> LlmConfig:
    """What a file and an environment make of providers; nothing may be left to say about them."""
    path = folder / "config.toml"
    path.write_text(text)
    loaded = load_config(path, environ=environ)
    assert loaded.warnings == ()
    return loaded.config.llm


def redirected(llm: LlmConfig, provider_id: str, url: str) -> LlmConfig:
    """The same with one provider's host replaced; the path stays."""
    provider = llm.provider[provider_id]
    moved = provider.model_copy(update={"base_url": url + urlsplit(provider.base_url).path})
    return LlmConfig(provider={provider_id: moved})


def test_the_table_has_all_of_them_in_the_order_of_preference() -> None:
    assert list(provider_table()) == [*ROWS, "demo"]


@pytest.mark.spec("control 8.2.33", "C-2", "C-33", "C-53", "CA-3")
@pytest.mark.parametrize("provider_id", [name for name in ROWS if name != "github-copilot"])
async def test_a_key_makes_a_provider_whose_requests_arrive(provider_id: str, tmp_path: Path) -> None:
    row = ROWS[provider_id]
    llm = load(tmp_path, f'[llm]\n{row.key} = "{SECRET}"')
    assert llm == load(tmp_path, "", **{row.variable: SECRET})
    assert list(llm.provider) == [provider_id, "demo"]
    assert default_models(llm).first.startswith(f"{provider_id}/")
    serve = serve_anthropic if row.is_messages else serve_openai
    model = f"{provider_id}/vendor/some-model"  # ids may hold slashes
    settings = AgentSettings(routing=RoutingConfig(channel=model))
    async with serve([Answer(text="hi")]) as stand_in:
        moved = redirected(llm, provider_id, stand_in.url)
        with trio.fail_after(20):
            async with open_models(lambda: moved) as models:
                request = replace(ask(), max_output_tokens=77)
                assert (await models.complete(request, settings)).message.text == "hi"
    (request_sent,) = stand_in.requests
    assert request_sent.path == urlsplit(row.url).path
    assert llm.provider[provider_id].base_url == row.url.removesuffix(CHAT).removesuffix("/v1/messages").removesuffix(
        "/chat/completions"
    )
    body = request_sent.json()
    assert (body["model"], body[row.limit]) == ("vendor/some-model", 77)
    check_headers(request_sent, row)


def check_headers(request: Request, row: Row) -> None:
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert request.headers.get("x-api-key") == (SECRET if row.is_messages else None)
    for name, value in row.headers.items():
        assert request.headers[name] == value
    assert request.headers["accept-encoding"] == "identity"
    assert ("x-opencode-session" in request.headers) is (row.key == "opencode_go_key")


@pytest.mark.spec("control 8.2.61", "C-61")
async def test_a_proxys_token_is_shown_as_a_bearers_alone(tmp_path: Path) -> None:
    async with serve_anthropic(lambda body: Answer(text="hi")) as stand_in, open_transport() as transport:
        environ = {"ANTHROPIC_AUTH_TOKEN": SECRET, "ANTHROPIC_BASE_URL": f"{stand_in.url}/v1/"}
        dialect = AnthropicDialect(transport)
        await dialect.complete(ask(), resolve("claude-sonnet-5", load(tmp_path, **environ)), lambda delta: None)
        both = load(tmp_path, **environ, ANTHROPIC_API_KEY="a-key-that-comes-first")
        await dialect.complete(ask(), resolve("claude-sonnet-5", both), lambda delta: None)
        table = load(tmp_path, '[llm.provider.anthropic]\nname = "Proxy"', **environ)
        assert resolve("claude-sonnet-5", table).auth is AuthKind.BEARER
    first, second = stand_in.requests
    assert (first.path, first.headers["authorization"]) == ("/v1/messages", f"Bearer {SECRET}")
    assert "x-api-key" not in first.headers
    assert second.headers["x-api-key"] == "a-key-that-comes-first"


async def test_azure_is_asked_at_the_deployments_address(tmp_path: Path) -> None:
    text = """
        [llm.provider.office]
        api_type = "azure"
        base_url = "https://office.openai.azure.com/"
        api_key = "the-key-of-the-office"
        """
    named = load(tmp_path, text + 'deployment = "our-gpt"\napi_version = "2025-04-01"')
    for llm, path in [
        (named, "/openai/deployments/our-gpt/chat/completions?api-version=2025-04-01"),
        (load(tmp_path, text), "/openai/deployments/gpt-5/chat/completions?api-version=2024-10-21"),
        (load(tmp_path, text.replace("com/", "com/openai/v1")), "/openai/v1/chat/completions"),
    ]:
        target = resolve("office/gpt-5", llm)
        assert target.base_url.startswith("https://office.openai.azure.com/openai/")
        async with serve_openai([Answer(text="hi")]) as stand_in, open_transport() as transport:
            moved = replace(target, base_url=stand_in.url + urlsplit(target.base_url).path)
            request = replace(ask(), max_output_tokens=5)
            await OpenAiChatDialect(transport).complete(request, moved, lambda delta: None)
        (sent,) = stand_in.requests
        assert sent.path == path
        assert sent.headers["api-key"] == "the-key-of-the-office"
        assert "authorization" not in sent.headers
        assert "max_completion_tokens" in sent.json()


@pytest.mark.parametrize(
    ("api_type", "path"),
    [
        (ApiType.OPENAI_RESPONSES, "/base/v1/responses"),
        (ApiType.GEMINI, "/base/chat/completions"),
        (ApiType.KILO_GATEWAY, "/base/chat/completions"),
    ],
)
async def test_a_provider_of_the_owners_own_in_each_further_dialect(api_type: ApiType, path: str) -> None:
    serve = serve_responses if api_type is ApiType.OPENAI_RESPONSES else serve_openai
    async with serve([Answer(text="hi")]) as stand_in:
        llm = custom("mine", api_type, f"{stand_in.url}/base")
        async with open_models(lambda: llm) as models:
            settings = AgentSettings(routing=RoutingConfig(channel="mine/m"))
            assert (await models.complete(ask(), settings)).message.text == "hi"
    (request,) = stand_in.requests
    assert request.path == path
    assert request.headers["authorization"] == f"Bearer {KEY.get_secret_value()}"
    assert ("http-referer" in request.headers) is (api_type is ApiType.KILO_GATEWAY)


def test_programs_get_models_that_need_no_more_than_a_key() -> None:
    lent = {name for name in ROWS if is_lendable(resolve(f"{name}/m", providers(name)))}
    assert lent == ROWS.keys() - {"github-copilot"}
    assert not is_lendable(resolve("openai/gpt-6-sol", providers("openai")))


def test_a_second_account_at_a_vendor_has_the_vendors_peculiarities() -> None:
    def known(url: str, api_type: ApiType = ApiType.OPENAI_COMPLETIONS) -> object:
        return resolve("mine/m", custom("mine", api_type, url)).entry

    assert known("https://api.openai.com").max_tokens_field == "max_completion_tokens"
    assert known("https://api.kimi.com/coding").headers["User-Agent"] == "KimiCLI/1.3"
    assert known("https://api.kimi.com/coding").replays_reasoning
    assert known("https://openrouter.ai/api").cache_marks
    assert not known("https://api.mistral.ai").stream_usage
    assert known("https://models.example").headers == {}
    assert not known("https://notopenrouter.ai").cache_marks


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("gpt-4.1", ApiType.OPENAI_COMPLETIONS),
        ("o3", ApiType.OPENAI_COMPLETIONS),
        ("gpt-5-mini", ApiType.OPENAI_COMPLETIONS),
        ("gpt-5.4", ApiType.OPENAI_RESPONSES),
        ("gpt-6-sol", ApiType.OPENAI_RESPONSES),
        ("gpt-5.3-codex", ApiType.OPENAI_RESPONSES),
        ("o3-pro", ApiType.OPENAI_RESPONSES),
    ],
)
def test_models_that_take_tools_by_responses_only_are_asked_so_at_the_vendors_own_host(
    model: str, kind: ApiType
) -> None:
    assert resolve(f"openai/{model}", providers("openai")).api_type is kind
    proxied = providers("openai", url="https://proxy.example")
    assert resolve(f"openai/{model}", proxied).api_type is ApiType.OPENAI_COMPLETIONS


@pytest.mark.spec("C-34")
async def test_each_role_has_its_own_effort_on_the_wire(tmp_path: Path) -> None:
    """Asked for by the name of the role, whatever model serves it (control spec 2.10)."""
    text = '[llm]\nanthropic_key = "x-key"\n[defaults.routing]\nworker_thinking_effort = "low"'
    (tmp_path / "config.toml").write_text(text)
    config = load_config(tmp_path / "config.toml", environ={"SPACEBOT_MODEL": "anthropic/claude-opus-4.8"}).config
    async with serve_anthropic(lambda body: Answer(text="hi")) as stand_in:
        moved = redirected(config.llm, "anthropic", stand_in.url)
        async with open_models(lambda: moved) as models:
            for process in (ProcessKind.CHANNEL, ProcessKind.WORKER):
                await models.complete(ask(process=process), config.default_agent)
    assert [body["output_config"] for body in stand_in.bodies] == [{"effort": "max"}, {"effort": "low"}]
    assert [body["model"] for body in stand_in.bodies] == ["claude-opus-4-8"] * 2


def thought(name: str, proof: str) -> ModelMessage:
    """A call with thinking before it, as a dialect keeps it."""
    sealed = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": proof}
    part = Reasoning("hm", signature=proof) if name == "anthropic" else Reasoning("", data=json.dumps(sealed))
    return ModelMessage(Role.ASSISTANT, (part, ToolCall(proof, "shell", {})))


@pytest.mark.parametrize("name", ["anthropic", "responses"])
async def test_thinking_that_is_refused_is_left_out_from_then_on_and_nothing_else_is(name: str) -> None:
    """Proofs count for one account and model; a chain of fallbacks crosses both."""
    words = b"messages.1.content.0: Invalid `signature` in `thinking` block; encrypted reasoning not verified"
    refusal = Refusal(400, b'{"error":{"type":"invalid_request_error","message":"%b"}}' % words)
    serve = serve_anthropic if name == "anthropic" else serve_responses
    async with (
        serve([refusal, Answer(text="hi"), Answer(text="hi"), refusal]) as stand_in,
        open_transport() as transport,
    ):
        if name == "anthropic":
            dialect, llm = AnthropicDialect(transport), providers("anthropic", url=stand_in.url)
        else:
            dialect = OpenAiResponsesDialect(transport)
            llm = custom("responses", ApiType.OPENAI_RESPONSES, stand_in.url)
        target = resolve(f"{name}/m", llm)
        run = [ModelMessage.user("go"), thought(name, "alien"), ModelMessage(Role.USER, (ToolResult("alien", "done"),))]
        reply = await dialect.complete(replace(ask(), messages=tuple(run)), target, lambda delta: None)
        assert reply.message.text == "hi"
        run += [thought(name, "own"), ModelMessage(Role.USER, (ToolResult("own", "done"),))]
        await dialect.complete(replace(ask(), messages=tuple(run)), target, lambda delta: None)
        with pytest.raises(ModelRejectedError):  # there is no thinking that could be the reason
            await dialect.complete(ask(), target, lambda delta: None)
    proofs = [{proof for proof in ("alien", "own") if is_shown(body, proof)} for body in stand_in.bodies]
    assert proofs == [{"alien"}, set(), {"own"}, set()]
    assert b"shell" in stand_in.requests[1].body


def is_shown(body: Any, proof: str) -> bool:
    """Whether a request carries a proof of thinking."""
    text = json.dumps(body)
    return f'"signature": "{proof}"' in text or f'"encrypted_content": "{proof}"' in text


def test_the_first_provider_of_the_owners_own_gives_defaults_when_no_other_is_there() -> None:
    own = ProviderConfig(api_type=ApiType.AZURE, base_url="https://office.openai.azure.com", api_key=KEY)
    assert default_models(LlmConfig(provider={"office": own})).first == "office/gpt-4.1"
