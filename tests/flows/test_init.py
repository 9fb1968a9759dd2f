"""The first minutes of somebody who has the program, a key and a bot's token: from `spacebot init` to an answer."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.storage.secrets import SecretStore
from tests.flows.stories import run, up, wait_for
from tests.flows.terminal import Terminal
from tests.real_daemon import Daemon, program
from tests.stand_ins import discord as discord_wire
from tests.stand_ins.anthropic import serve_anthropic
from tests.stand_ins.discord import open_discord
from tests.stand_ins.oauth import Authority, serve_authority
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer, Use
from tests.towns import mark

KEY = "sk-a-key-that-nobody-should-see"
A_NEWCOMERS_PATIENCE_S = 180


@pytest.mark.slow
async def test_a_newcomer_is_talking_by_init_alone(tmp_path: Path) -> None:
    with trio.fail_after(A_NEWCOMERS_PATIENCE_S):
        async with serve_openai(mark) as model, open_discord() as world:
            guild = world.add_guild("Home")
            room, ann = world.add_channel(guild, "general"), world.add_user("ann", guild=guild)
            daemon = Daemon(tmp_path, model_url=None)  # its file holds a free port alone
            daemon.extra_environ = {"SPACEBOT_DISCORD_REST_URL": world.rest_url, "TERM": "xterm"}

            def first_steps() -> str:
                terminal = Terminal([*program(), "init"], daemon.environment, tmp_path)
                try:
                    terminal.answer("Provider, by name or number", "nonsense")
                    terminal.answer("there is no 'nonsense'", "custom")
                    terminal.answer("Name for it", "standin")
                    terminal.answer("Wire format", "morse")
                    terminal.answer("type one of: ", "openai_completions")
                    terminal.answer("Address", model.url)
                    terminal.answer("(not shown", KEY)
                    terminal.answer("Model, as the provider calls it", "model")
                    terminal.expect("it answers: done")
                    terminal.answer("Name of the agent", "My Bot")
                    terminal.answer("Platform [none]", "discord")
                    terminal.answer("Bot token (not shown", "no token")
                    terminal.expect("three parts with dots")
                    terminal.answer("Bot token (not shown", world.token)
                    terminal.answer("Server's id", guild)
                    terminal.answer("Channels' ids", room)
                    terminal.answer("People who may write directly", ann)
                    terminal.expect("signed in as spacebot on Home")
                    terminal.answer("Another platform [none]")
                    terminal.answer("config.toml? (y/n) [y]")
                    terminal.answer("Start Spacebot now? (y/n) [y]")
                    terminal.expect("web chat: http://127.0.0.1:")
                    terminal.expect("model: standin/model")
                    assert terminal.end() == 0, terminal.shown
                    return terminal.shown
                finally:
                    terminal.close()

            try:
                shown = await trio.to_thread.run_sync(first_steps)
                assert KEY not in shown
                assert world.token not in shown
                while not world.connected:
                    await trio.sleep(0.05)
                world.post(room, ann, f"<@{discord_wire.BOT}> m7 addressed")
                while not [sent for sent in world.sent if sent.room == room and sent.text == "m7"]:
                    await trio.sleep(0.05)
                world.post(world.direct(ann), ann, "m8 addressed")
                while not [sent for sent in world.sent if sent.text == "m8"]:
                    await trio.sleep(0.05)
                status = await trio.to_thread.run_sync(lambda: daemon.run("status"))
                assert "my-bot" in status.stdout
                assert "setup:" not in status.stdout
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(lambda: daemon.run("stop", "--force"))
            text = (tmp_path / "config.toml").read_text()
            assert KEY not in text
            assert world.token not in text
            assert text.startswith("[api]\n")
            assert stat.S_IMODE((tmp_path / "secrets.db").stat().st_mode) == 0o600
            assert SecretStore(tmp_path).read()["PROVIDER_STANDIN_API_KEY"].value == KEY
            assert model.requests[0].headers["authorization"] == f"Bearer {KEY}"
            assert world.complaints == []


@pytest.mark.slow
async def test_signing_in_with_and_without_a_browser(tmp_path: Path) -> None:
    """`auth login` at a terminal; a browser that is there gets the address and nothing else."""
    desktop = tmp_path / "desktop"
    desktop.mkdir()
    opener = desktop / "xdg-open"
    opener.write_text(f'#!/bin/sh\nexport -p > "{desktop}/environ"\necho "$1" > "{desktop}/url"\n')
    opener.chmod(0o700)
    async with serve_authority() as authority:
        daemon = Daemon(tmp_path / "instance", model_url=None)

        def sign_in(*words: str, **environ: str) -> Terminal:
            secrets = {"SPACEBOT_SECRET_PASSPHRASE": "a phrase of the owner", "GROQ_TOKEN": KEY, "TERM": "xterm"}
            whole = daemon.environment | authority.environment | secrets | environ
            terminal = Terminal([*program(), "auth", "login", *words], whole, daemon.folder)
            terminal.expect("terms")
            terminal.expect("\nhttp")
            url = "http" + terminal.expect("\n")
            terminal.answer("Code: ", "made up")
            terminal.expect("copy all of it")
            terminal.type(authority.approve(url))
            terminal.expect("signed in")
            assert terminal.end() == 0
            return terminal

        def story() -> None:
            without = sign_in(PATH=f"{desktop}:{os.environ['PATH']}", DISPLAY="", WAYLAND_DISPLAY="")
            assert "a browser was asked" not in without.shown
            done = daemon.run("auth", "status", "--json")
            assert (done.returncode, '"state": "valid"' in done.stdout) == (0, True)
            first = (daemon.folder / "anthropic_oauth.json").read_bytes()
            with_one = sign_in("--console", PATH=f"{desktop}:{os.environ['PATH']}", DISPLAY=":0")
            assert "a browser was asked" in with_one.shown
            assert (daemon.folder / "anthropic_oauth.json").read_bytes() != first
            wait_for_file(desktop / "url")
            assert (desktop / "url").read_text().strip() in with_one.shown
            passed = (desktop / "environ").read_text()
            assert "DISPLAY" in passed
            assert "owner" not in passed
            assert KEY not in passed
            assert "SPACEBOT" not in passed

        await trio.to_thread.run_sync(story)
        await trio.to_thread.run_sync(_sign_in_by_init, tmp_path / "another", authority)
        await _renew_and_leave(daemon, authority)


def _sign_in_by_init(folder: Path, authority: Authority) -> None:
    """The first steps offer the login in place of a key."""
    folder.mkdir()
    environ = Daemon(folder / "none", model_url=None).environment | {"SPACEBOT_DIR": str(folder), "TERM": "xterm"}
    terminal = Terminal([*program(), "init", "--no-test"], environ | authority.environment | {"DISPLAY": ""}, folder)
    try:
        terminal.answer("Provider, by name or number", "anthropic")
        terminal.expect("terms")
        terminal.answer("key, login or console", "login")
        terminal.expect("\nhttp")
        terminal.answer("Code: ", authority.approve("http" + terminal.expect("\n")))
        terminal.expect("signed in")
        terminal.answer("Model [anthropic/")
        terminal.answer("Name of the agent")
        terminal.answer("Platform [none]")
        terminal.answer("Start Spacebot now?", "n")
        assert terminal.end() == 0, terminal.shown
    finally:
        terminal.close()
    text = (folder / "config.toml").read_text()
    assert "key" not in text
    assert 'channel = "anthropic/' in text


@pytest.mark.spec("CA-11")
@pytest.mark.slow
async def test_a_running_program_sees_a_login_and_its_end(tmp_path: Path) -> None:
    def talk(body: Any) -> Answer:
        offered = {tool["name"] for tool in body.get("tools", ())}
        return Answer(uses=(Use("reply", {"content": "a real answer"}),)) if "reply" in offered else Answer(text="done")

    async with serve_authority() as authority, serve_anthropic(talk) as model:
        daemon = Daemon(tmp_path, model_url=None)
        daemon.extra_environ = authority.environment | {"ANTHROPIC_BASE_URL": model.url}
        async with up(daemon) as person:
            assert (await person.get("/api/status"))["needs_setup"]
            assert "run: spacebot init" in (await run(daemon, "status")).stdout
            assert "demo model" in await person.answer("what can you do?")
            tokens = authority.issue()
            fields = {name: tokens[name] for name in ("access_token", "refresh_token")}
            login = tmp_path / "anthropic_oauth.json"
            login.write_text(json.dumps(fields | {"expires_at": 1}))  # as if another program had signed in

            async def needs_setup() -> bool:
                return bool((await person.get("/api/status"))["needs_setup"])

            await wait_for(needs_setup, lambda needed: not needed)
            assert await person.answer("hello again") == "a real answer"
            assert json.loads(login.read_text())["access_token"] == authority.live_access[-1]
            assert model.requests[-1].headers["authorization"] == f"Bearer {authority.live_access[-1]}"
            assert "\nlogin:     valid\n" in (await run(daemon, "status")).stdout
            await run(daemon, "auth", "logout")
            assert await needs_setup()


async def _renew_and_leave(daemon: Daemon, authority: Authority) -> None:
    daemon.extra_environ = authority.environment

    def run(*words: str) -> Any:
        return daemon.run("auth", *words)

    done = await trio.to_thread.run_sync(run, "refresh")
    assert done.returncode == 0, done.stderr
    tokens = (daemon.folder / "anthropic_oauth.json").read_text()
    assert authority.live_access[-1] in tokens
    shown = await trio.to_thread.run_sync(run, "status")
    assert (shown.returncode, "renewed by itself" in shown.stdout) == (0, True)
    assert not [token for token in (*authority.live_access, *authority.live_refresh) if token in shown.stdout]
    authority.revoke()
    refused = await trio.to_thread.run_sync(run, "refresh")
    assert (refused.returncode, "sign in again: spacebot auth login" in refused.stderr) == (1, True)
    assert (await trio.to_thread.run_sync(run, "status")).returncode == 1
    assert (await trio.to_thread.run_sync(run, "logout")).returncode == 0
    assert not (daemon.folder / "anthropic_oauth.json").exists()
    assert authority.complaints == []


def wait_for_file(path: Path) -> None:
    """The opener is a program of its own; it is there within a moment."""
    import time

    for _ in range(600):
        if path.exists() and path.read_text().endswith("\n"):
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} does not come")
