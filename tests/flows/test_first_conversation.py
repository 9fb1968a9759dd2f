"""The story of the product, on every face: talk while it works, tell it something, pull the plug, ask again."""

import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.flows.stories import DIALECTS, Asked, browser, outcome, read_request, reply, run, up
from tests.real_daemon import Daemon
from tests.stand_ins.serving import Answer, Use

COLOUR = "remember that my favourite colour is teal"
QUESTION = "what is my favourite colour?"


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them have ended."""
    return not psutil.wait_procs(processes, timeout=10)[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # selenium's own sockets
async def test_in_the_browser(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "instance", model_url=None)
    with browser(tmp_path) as window:

        def answers() -> list[str]:
            script = "return [...document.querySelectorAll('#log .message.assistant .body')].map(e => e.textContent)"
            return list(window.driver.execute_script(script))

        def wait_answer(part: str, count: int = 1) -> None:
            window.wait(lambda: sum(part in text for text in answers()) == count, f"{count} times {part!r}")

        def card() -> bool:
            script = "return [...document.querySelectorAll('#running .card')].map(e => e.textContent)"
            return any("sleep 60" in text for text in window.driver.execute_script(script))

        def talk_while_it_works() -> None:
            window.open(f"http://127.0.0.1:{daemon.port}/")
            window.say("work for one minute")
            window.wait(card, "the worker's card")
            wait_answer("On it: work for one minute")
            window.say("hello")
            wait_answer("Hello")
            window.say(COLOUR)
            wait_answer("Noted")
            assert card(), "all that happened while it worked"

        def without_it() -> None:
            window.wait(lambda: window.find("#connection[data-state=offline]"), "offline is shown")

        def ask_again() -> None:
            window.wait_online()
            wait_answer("restart")
            assert not card()
            window.say(QUESTION)
            wait_answer("teal", count=2)  # noted, and recalled

        def cancel_a_worker() -> None:
            window.say("work for one minute")
            window.wait(card, "the card")
            window.driver.execute_script(
                "[...document.querySelectorAll('#running .card')].find(e => e.textContent.includes('sleep 60'))"
                ".querySelector('.cancel').click()"
            )
            window.wait(lambda: window.find("#finished .card.cancelled"), "kept among the finished")
            wait_answer("cancelled by a person")
            assert not card()

        async with up(daemon) as person:
            await trio.to_thread.run_sync(talk_while_it_works)
            children = daemon.ps.children(recursive=True)
            assert children, "the worker's command"
            await trio.to_thread.run_sync(daemon.kill)
            assert gone(children), "what a worker runs ends with the program, even by kill -9"
            await trio.to_thread.run_sync(without_it)
            await trio.to_thread.run_sync(daemon.start)
            await trio.to_thread.run_sync(ask_again)
            await trio.to_thread.run_sync(cancel_a_worker)
            chat = (await person.get("/api/channels"))["channels"][0]["id"].removeprefix("webchat:")
            logged = await person.texts(chat)
            shown = await trio.to_thread.run_sync(window.texts)
            complaints = await trio.to_thread.run_sync(window.complaints)
    assert [_plain(text) for text in shown] == [_plain(text) for text in logged]
    assert [text for text in shown if not text.startswith("[demo model]")] == [
        "work for one minute", "hello", COLOUR, QUESTION, "work for one minute",
    ]  # fmt: skip
    assert all("ERR_CONNECTION_REFUSED" in line or "ERR_INCOMPLETE" in line for line in complaints), complaints


def _plain(text: str) -> str:
    return re.sub(r"[\s`*]+", "", text)


@pytest.mark.slow
async def test_on_the_command_line(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, model_url=None)

    async def chat(text: str) -> str:
        done = await run(daemon, "chat", text)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    async with up(daemon) as person:
        assert "On it" in await chat("work for one minute")
        assert "Hello" in await chat("hello")
        (worker,) = re.findall(r"^.*worker.*sleep 60.*$", (await run(daemon, "top", "--once")).stdout, re.MULTILINE)
        worker_id = re.findall(r"[0-9a-f]{6,}", worker)[0]
        assert (await run(daemon, "top", "--cancel", worker_id)).returncode == 0
        assert "Hello" in await chat("hello"), "an end that is told in the same turn takes no question's place"
        await person.wait_for_text("cancelled from the command line", session="terminal")
        assert "Noted" in await chat(COLOUR)
        assert "sleep 60" not in (await run(daemon, "top", "--once")).stdout
        await trio.to_thread.run_sync(daemon.kill)
        assert (await run(daemon, "status")).returncode == 1
        await trio.to_thread.run_sync(daemon.start)
        assert "teal" in await chat(QUESTION)


def mind(body: Any) -> Answer:
    """A model that uses what a real one would: a branch to save and to recall, a worker for work."""
    asked = read_request(body)
    if asked.is_worker:
        return _work(asked)
    if not asked.is_channel:
        return _think(asked)
    said = asked.said
    if results := re.findall(r"<result [^>]*>\n(.*?)\n</result>", said, re.DOTALL):
        return reply("; ".join(results))
    if "remember" in said or "what is" in said:
        return Answer(uses=(Use("branch", {"description": said.splitlines()[-1]}), Use("skip", {"reason": "thinking"})))
    if "work" in said:
        return Answer(
            text="Starting.", uses=(Use("spawn_worker", {"task": "sleep a while"}), Use("reply", {"content": "On it."}))
        )
    return reply("Hello!")


def _think(asked: Asked) -> Answer:
    if asked.is_result_last:
        return Answer(text=f"Memory says: {asked.results[-1]}")
    if "remember" in asked.prompt:
        content = {"content": "Ann's favourite colour is teal", "memory_type": "preference"}
        return Answer(uses=(Use("memory_save", content),), reasoning="worth keeping")
    return Answer(uses=(Use("memory_recall", {"query": "favourite colour"}),))


def _work(asked: Asked) -> Answer:
    if asked.is_result_last:
        return outcome("slept")
    return Answer(uses=(Use("shell", {"command": "sleep 60", "timeout_seconds": 90}),))


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_over_http_with_a_model_of_each_dialect(tmp_path: Path, dialect: str) -> None:
    async with DIALECTS[dialect](mind) as model:
        daemon = Daemon(tmp_path, model_url=model.url, api_type=dialect)
        async with up(daemon) as person:
            assert "On it." in await person.answer("please work", session="w")
            (worker,) = await person.running("worker")
            assert await person.answer("good morning") == "Hello!"
            assert "Memory says" in await person.answer(COLOUR)
            assert [node["id"] for node in await person.running("worker")] == [worker["id"]]
            await trio.to_thread.run_sync(daemon.kill)
            await trio.to_thread.run_sync(daemon.start)
            assert "teal" in await person.answer(QUESTION, session="another")
            assert not await person.running("worker")
            assert "restart" in await person.wait_for_text("restart", session="w")
            texts = await person.texts()
    assert texts[:2] == ["good morning", "Hello!"]
    assert len(texts) == 4
