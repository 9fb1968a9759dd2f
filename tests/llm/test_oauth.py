"""Signing in and staying signed in, against an authority on this machine; the model is a stand-in at the wire too."""

import json
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import BusyError, ConfigError, ModelRejectedError, RefusedError, StorageError
from spacebot.config.load import load_config
from spacebot.config.model import ApiType, LlmConfig, ProviderConfig
from spacebot.llm.anthropic import AnthropicDialect
from spacebot.llm.credentials import Credentials
from spacebot.llm.dialect import AuthKind, Target
from spacebot.llm.messages import (
    ArgumentsDelta,
    ModelMessage,
    ModelReply,
    ModelRequest,
    ProcessKind,
    Role,
    SystemBlock,
    ToolCall,
    ToolResult,
    ToolSpec,
)
from spacebot.llm.oauth import (
    TOKEN_VARIABLE,
    Login,
    LoginState,
    RevokedError,
    TokenFile,
    Tokens,
    authorize_url,
    challenge_of,
    mask,
    read_answer,
    token_url,
)
from spacebot.llm.oauth_identity import IDENTITY, Dressed
from spacebot.llm.routing import resolve
from spacebot.llm.transport import Transport, open_transport
from tests.llm.given import KEY, REPLY, ask
from tests.stand_ins.anthropic import serve_anthropic
from tests.stand_ins.oauth import Authority, serve_authority
from tests.stand_ins.serving import Answer, ModelStandIn, Refusal, Use

START = datetime(2026, 11, 1, tzinfo=UTC)
OLD = "sk-ant-oat01-old-token-of-the-owner"


@dataclass
class Desk:
    """A program with a login: the authority, the provider, and a clock that stands until it is moved."""

    authority: Authority
    model: ModelStandIn
    file: TokenFile
    transport: Transport
    replies: list[Answer | Refusal]
    now: datetime = START
    others: list[Credentials] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.credentials = self.another()
        self.dialect = AnthropicDialect(self.transport)
        self.dialect.load()

    def another(self) -> Credentials:
        """Another program on the same folder."""
        return Credentials(TokenFile(self.file.path), self.transport, clock=Clock(lambda: self.now))

    def target(self, *, key: str = "") -> Target:
        provider = ProviderConfig(
            api_type=ApiType.ANTHROPIC, base_url=self.model.url, has_login=True, api_key=key or None
        )
        return resolve("anthropic/claude-sonnet-4", LlmConfig(provider={"anthropic": provider}))

    async def ask(self, request: ModelRequest | None = None, *, key: str = "") -> ModelReply:
        return await self.credentials.complete(self.dialect, request or ask(), self.target(key=key), lambda delta: None)

    def keep(self, *, left_s: float, access: str | None = None) -> Tokens:
        """Be signed in, as the authority knows it."""
        given = self.authority.issue()
        tokens = Tokens(
            access_token=access or given["access_token"],
            refresh_token=given["refresh_token"],
            expires_at=int((self.now.timestamp() + left_s) * 1000),
        )
        self.file.save(tokens)
        return tokens

    @property
    def shown(self) -> list[str]:
        """The credential of each call, in order."""
        heads = [request.headers for request in self.model.requests]
        return [head.get("authorization", "").removeprefix("Bearer ") or head.get("x-api-key", "") for head in heads]


@asynccontextmanager
async def desk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    replies: list[Answer | Refusal] = []

    def respond(body: Any) -> Answer | Refusal:
        return replies.pop(0) if replies else Answer(text="hello")

    async with serve_authority() as authority, serve_anthropic(respond) as model, open_transport() as transport:
        for name, value in authority.environment.items():
            monkeypatch.setenv(name, value)
        with trio.fail_after(20):
            yield Desk(authority, model, TokenFile(folder / "anthropic_oauth.json"), transport, replies)


UNAUTHORISED = Refusal(401, b'{"error":{"type":"authentication_error","message":"OAuth token has been revoked"}}')


# The flow


@pytest.mark.spec("CA-7")
async def test_a_person_signs_in_and_calls_show_the_token_and_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        login = Login.begin(authorize_url(is_console=False))
        await d.credentials.sign_in(login, d.authority.approve(login.url))
        assert d.authority.complaints == []
        assert stat.S_IMODE(d.file.path.stat().st_mode) == 0o600
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
        reply = await d.ask(
            ModelRequest(
                process=ProcessKind.CHANNEL,
                system=(SystemBlock("We are calm."), SystemBlock("It is noon.", is_stable=False)),
                messages=(ModelMessage.user("hi"),),
                tools=(REPLY,),
            ),
            key=KEY.get_secret_value(),
        )
        assert reply.is_included
        (request,) = d.model.requests
        assert request.headers["authorization"] == f"Bearer {d.authority.live_access[-1]}"  # beats the key
        assert "x-api-key" not in request.headers
        assert request.headers["user-agent"].startswith("claude-code/")
        assert request.headers["x-app"] == "cli"
        assert "oauth-2025-04-20" in request.headers["anthropic-beta"]
        system = request.json()["system"]
        assert [block["text"] for block in system] == [IDENTITY.text, "We are calm.", "It is noon."]
        assert ["cache_control" in block for block in system] == [False, True, False]  # one mark covers both


async def test_a_key_is_shown_as_ever_and_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        reply = await d.ask(key=KEY.get_secret_value())  # nobody is signed in
        (request,) = d.model.requests
        assert not reply.is_included
        assert request.headers["x-api-key"] == KEY.get_secret_value()
        assert "claude-code" not in request.headers["user-agent"] + request.headers.get("anthropic-beta", "")
        assert "system" not in request.json()


def test_the_address_holds_what_the_authority_wants_and_the_code_is_compared() -> None:
    login = Login.begin("https://example.org/authorize")
    assert len(login.verifier) == 86  # 64 bytes in base64url
    assert f"code_challenge={challenge_of(login.verifier)}" in login.url
    assert challenge_of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    assert Login.begin("https://example.org/authorize").verifier != login.verifier

    assert login.read(f"  the-code#{login.verifier}\n") == "the-code"
    wrapped = f"the-code#{login.verifier}"
    assert login.read(f"{wrapped[:40]}\n{wrapped[40:]}") == "the-code"
    assert login.read(f"https://console.anthropic.com/x?code=the-code&state={login.verifier}") == "the-code"
    for wrong in (
        "the-code",
        "the-code#other",
        f"#{login.verifier}",
        "the-code#",
        "https://x.org/?code=a&state=b",
        "https://[x/?code=a&state=b",
        "#",
    ):
        with pytest.raises(RefusedError):
            login.read(wrong)


@pytest.mark.parametrize(
    ("url", "is_good"),
    [
        ("https://other.example/token", True),
        ("http://127.0.0.1:9/token", True),
        ("http://[::1]:9/token", True),
        ("http://other.example/token", False),
        ("http://127.0.0.1.evil.example/token", False),
        ("file:///etc/passwd", False),
        ("nonsense", False),
        ("https://[x", False),
    ],
)
def test_another_authority_is_https_or_on_this_machine(url: str, is_good: bool) -> None:
    if is_good:
        assert token_url({TOKEN_VARIABLE: url}) == url
    else:
        with pytest.raises(ConfigError, match="https"):
            token_url({TOKEN_VARIABLE: url})


async def test_a_wrong_code_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        old = d.keep(left_s=3600)
        login = Login.begin(authorize_url(is_console=True))
        d.authority.approve(login.url)
        with pytest.raises(RefusedError, match="not accepted"):
            await d.credentials.sign_in(login, f"made-up#{login.verifier}")
        assert d.file.load() == old


# Renewal


@pytest.mark.spec("CA-7")
@pytest.mark.parametrize(("left_s", "renewals"), [(301, 0), (299, 1), (-5000, 1)])
async def test_a_token_is_renewed_five_minutes_before_it_ends(
    left_s: float, renewals: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        old = d.keep(left_s=left_s)
        await d.ask()
        await d.ask()
        assert len(d.authority.asked) == renewals
        kept = d.file.load()
        assert kept is not None
        assert (kept.access_token != old.access_token) == bool(renewals)
        assert d.shown == [kept.access_token] * 2
        if renewals:
            assert d.authority.asked[0]["refresh_token"] == old.refresh_token
            assert kept.expires_at == int((START + timedelta(hours=8)).timestamp() * 1000)


async def test_many_calls_of_two_programs_renew_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        d.keep(left_s=10)
        d.authority.hold = trio.Event()
        other = d.another()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(d.ask)
                nursery.start_soon(other.complete, d.dialect, ask(), d.target(), lambda delta: None)
            while not d.authority.asked:
                await trio.sleep(0.01)
            d.authority.hold.set()
        assert [body["grant_type"] for body in d.authority.asked] == ["refresh_token"]
        assert len(set(d.shown)) == 1
        assert len(d.shown) == 16


async def test_what_the_authority_sent_is_kept_though_the_call_behind_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        d.keep(left_s=10)
        d.authority.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(d.ask)
            while not d.authority.asked:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
            d.authority.hold.set()
        kept = d.file.load()
        assert kept is not None
        assert kept.refresh_token in d.authority.live_refresh  # the old one is used up
        await d.ask()
        assert len(d.authority.asked) == 1


async def test_a_full_disk_does_not_cost_the_login_of_a_program_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: Any
) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        d.keep(left_s=10)
        logs.expect("login renewed, but not kept")

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as full:
            full.setattr("os.fsync", refuse)
            await d.ask()
        await d.ask()
        assert d.shown == [d.authority.live_access[-1]] * 2
        assert len(d.authority.asked) == 1


async def test_signing_in_and_out_counts_at_once_in_a_program_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        key = KEY.get_secret_value()
        await d.ask(key=key)
        first = d.keep(left_s=3600)
        await d.ask(key=key)
        second = d.keep(left_s=3600)
        await d.ask(key=key)
        assert await d.another().sign_out()
        await d.ask(key=key)
        assert d.shown == [key, first.access_token, second.access_token, key]
        with pytest.raises(ModelRejectedError, match="spacebot auth login"):
            await d.ask()
        assert not await d.another().sign_out()


# When it goes wrong


@pytest.mark.parametrize("left_s", [120, -60])
async def test_a_silent_authority_is_asked_again_later(
    left_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        old = d.keep(left_s=left_s)
        d.authority.fault = (503, b"<html>busy</html>")
        key = KEY.get_secret_value()
        assert not (await d.ask(key=key)).is_included or left_s > 0
        assert d.shown == [old.access_token if left_s > 0 else key]  # it still counts, or the key does
        if left_s < 0:
            with pytest.raises(Exception, match="503") as caught:
                await d.ask()
            assert getattr(caught.value, "retryable", False)
        await d.ask(key=key)
        assert len(d.authority.asked) == 1  # not with every call
        view = await d.credentials.login()
        assert (view.state, "503" in (view.problem or "")) == (LoginState.VALID if left_s > 0 else "expired", True)
        assert d.file.load() == old
        d.authority.fault = None
        await d.credentials.renew()
        assert (await d.ask()).is_included
        assert (await d.credentials.login()).problem is None


@pytest.mark.spec("C-65", "CA-7")
async def test_a_revoked_login_gives_way_to_the_key_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        old = d.keep(left_s=3600)
        d.authority.revoke()
        key = KEY.get_secret_value()
        d.replies.append(UNAUTHORISED)
        reply = await d.ask(key=key)
        assert not reply.is_included
        assert d.shown == [old.access_token, key]
        with pytest.raises(ModelRejectedError, match="sign in again: spacebot auth login") as caught:
            await d.ask()
        assert old.refresh_token not in str(caught.value) + str(caught.value.__cause__)
        assert len(d.authority.asked) == 1  # a refused login is not shown again
        assert (await d.another().login()).state is LoginState.REFUSED  # another program knows it from the file
        d.keep(left_s=3600)
        assert (await d.ask()).is_included  # signed in anew


async def test_a_revoked_login_is_shown_once_however_many_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        d.keep(left_s=-60)
        d.authority.revoke()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(partial(d.ask, key=KEY.get_secret_value()))
        assert d.shown == [KEY.get_secret_value()] * 5
        assert len(d.authority.asked) == 1


async def test_a_token_that_was_withdrawn_early_is_renewed_and_the_call_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        d.keep(left_s=3600, access=OLD)
        d.replies.append(UNAUTHORISED)
        assert (await d.ask()).is_included
        assert d.shown == [OLD, d.authority.live_access[-1]]

        d.replies.extend([UNAUTHORISED, UNAUTHORISED])  # and one that is refused even when it is fresh
        with pytest.raises(ModelRejectedError, match="spacebot auth status"):
            await d.ask()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"access_token":"a"}', '{"access_token":1,"refresh_token":"r"}'])
async def test_a_damaged_file_is_told_and_the_key_counts(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        d.file.path.write_text(text)
        await d.ask(key=KEY.get_secret_value())
        assert d.shown == [KEY.get_secret_value()]
        with pytest.raises(ModelRejectedError, match="damaged"):
            await d.ask()
        assert (await d.credentials.login()).state is LoginState.UNREADABLE


def test_a_file_that_others_could_read_is_closed(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "a.json")
    file.save(Tokens(access_token="a", refresh_token="r", expires_at=1))
    file.path.chmod(0o644)
    assert file.load() is not None
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_two_programs_cannot_hold_the_file_at_once(tmp_path: Path) -> None:
    first, second = TokenFile(tmp_path / "a.json"), TokenFile(tmp_path / "a.json")
    with first.try_lock(), pytest.raises(BusyError, match="another program"), second.try_lock():
        pass
    with second.try_lock():
        pass


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="cannot be written"):
        TokenFile(tmp_path / "file" / "a.json").save(Tokens(access_token="a", refresh_token="r", expires_at=1))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b'{"error":"invalid_grant"}', RevokedError),
        (401, b"", RevokedError),
        (403, b'{"error":{"type":"permission_error","message":"no"}}', RevokedError),
        (403, b"<html>a wall on the way</html>", Exception),
        (400, b'{"error":"invalid_request"}', Exception),
        (500, b"\xff", Exception),
        (200, b"[]", Exception),
        (200, b'{"access_token":"a b","refresh_token":"r"}', Exception),
        (200, b'{"access_token":"a"}', Exception),
    ],
)
def test_answers_of_the_authority(status: int, body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        read_answer(status, body, 0)
    assert isinstance(caught.value, RevokedError) == (error is RevokedError)


@pytest.mark.parametrize("lasts", [None, "soon", -5, 0, True, float("inf"), 1e300])
def test_an_odd_lifetime_counts_as_a_usual_or_a_bounded_one(lasts: Any) -> None:
    answer = {"access_token": "a-token", "expires_in": lasts}
    known = Tokens(access_token="old", refresh_token="goes-on", expires_at=0)
    tokens = read_answer(200, json.dumps(answer).encode(), 1000, known=known)
    assert tokens.refresh_token == "goes-on"
    assert 0 < tokens.seconds_left(1000) <= 366 * 86_400


@pytest.mark.spec("C-63")
def test_a_token_is_never_shown_whole() -> None:
    for token in ("", "a", "abcdefgh", OLD):
        shown = mask(token)
        assert len(shown) <= 9
        assert token not in shown or not token
    assert OLD not in repr(Tokens(access_token=OLD, refresh_token=OLD, expires_at=0))


# Names of tools


def test_tools_are_spelt_as_the_provider_wants_and_read_back() -> None:
    read, web = ToolSpec("read", "Read.", {}), ToolSpec("websearch", "Search.", {})
    request = replace(
        ask("hi", REPLY, read, web),
        messages=(
            ModelMessage.user("hi"),
            ModelMessage(Role.ASSISTANT, (ToolCall("1", "read", {}, "{}"), ToolCall("2", "reply", {}, "{}"))),
            ModelMessage(Role.USER, (ToolResult("1", "x"), ToolResult("2", "y"))),
        ),
    )
    dressed = Dressed.of(request)
    assert [tool.name for tool in dressed.request.tools] == ["reply", "Read", "WebSearch"]
    assert [call.name for call in dressed.request.messages[1].tool_calls] == ["Read", "reply"]
    assert Dressed.of(request).request.tools[1] is dressed.request.tools[1]  # dialects know tools by identity
    heard: list[Any] = []
    watch: Callable[[Any], None] = dressed.watch(heard.append)
    watch(ArgumentsDelta(0, "WebSearch", "{"))
    assert heard == [ArgumentsDelta(0, "websearch", "{")]
    reply = ModelReply(parts=(ToolCall("3", "Read", {}, "{}"), ToolCall("4", "reply", {}, "{}")), finish_reason="stop")
    assert [call.name for call in dressed.undress(reply).message.tool_calls] == ["read", "reply"]


def test_two_tools_that_differ_by_case_keep_their_names() -> None:
    dressed = Dressed.of(ask("hi", ToolSpec("read", "", {}), ToolSpec("Read", "", {})))
    assert [tool.name for tool in dressed.request.tools] == ["read", "Read"]


async def test_a_call_in_the_wires_spelling_comes_back_in_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(tmp_path, monkeypatch) as d:
        d.keep(left_s=3600)
        d.replies.append(Answer(uses=(Use("Bash", {"command": "ls"}),)))
        reply = await d.ask(ask("hi", ToolSpec("bash", "Run.", {"type": "object"})))
        assert [call.name for call in reply.message.tool_calls] == ["bash"]
        assert [tool["name"] for tool in d.model.bodies[0]["tools"]] == ["Bash"]


# The configuration


@pytest.mark.parametrize(
    ("text", "environ", "is_shown"),
    [
        ("", {}, True),
        ('[llm]\nanthropic_key = "a-key-of-the-owner"\n', {}, True),
        ('[llm.provider.anthropic]\nbase_url = "http://127.0.0.1:9"\n', {}, True),
        ('[llm.provider.anthropic]\nbase_url = "https://proxy.example"\napi_key = "a-key"\n', {}, False),
        ("", {"ANTHROPIC_BASE_URL": "https://proxy.example", "ANTHROPIC_API_KEY": "a-key-of-the-owner"}, False),
    ],
)
def test_a_login_alone_makes_the_provider_usable_and_goes_to_no_other_host(
    text: str, environ: dict[str, str], is_shown: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(text)
    before = load_config(tmp_path / "config.toml", environ=environ).config.llm
    (tmp_path / "anthropic_oauth.json").write_text("{}")
    loaded = load_config(tmp_path / "config.toml", environ=environ)
    assert loaded.warnings == ()
    llm = loaded.config.llm
    assert resolve("anthropic/claude-sonnet-4", llm).auth is (AuthKind.OAUTH if is_shown else AuthKind.KEY)
    assert not llm.needs_setup
    assert before.needs_setup == ("key" not in text and not environ)
