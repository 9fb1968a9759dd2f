"""Every answer arrives: once, at everybody who follows, also late; and `why` tells what became of each message."""

import json
from pathlib import Path
from typing import Any

import trio

from tests.flows.stories import (
    DIALECTS,
    PATIENCE_S,
    Person,
    following,
    outcome,
    read_request,
    reply,
    run,
    up,
    wait_for,
)
from tests.real_daemon import Daemon
from tests.stand_ins.serving import Answer, Refusal, Reply, Use

serve_openai = DIALECTS["openai_completions"]


def obedient(body: Any) -> Reply:
    """Does what the message says."""
    asked = read_request(body)
    if asked.is_worker:
        return (
            outcome("the work is done")
            if asked.is_result_last
            else Answer(uses=(Use("shell", {"command": "while [ ! -e go ]; do sleep 0.05; done"}),))
        )
    said = asked.said
    if "<result" in said:
        return reply("It came back: the work is done")
    if "nothing" in said:
        return Answer(uses=(Use("skip", {"reason": "not meant for me"}),))
    if "break" in said:
        return Refusal(400)
    if "work" in said:
        return Answer(uses=(Use("spawn_worker", {"task": "wait for go"}), Use("reply", {"content": "On it."})))
    return reply(f"heard {said.count(': ')}")


async def test_why_tells_each_fate_with_its_replies(tmp_path: Path) -> None:
    async with serve_openai(obedient) as model:
        daemon = Daemon(tmp_path, model_url=model.url, extra="[defaults.coalesce]\ndebounce_ms = 300\n")
        async with up(daemon) as person:

            async def why(message_id: str) -> dict[str, list[str]]:
                done = await run(daemon, "why", message_id)
                assert done.returncode == 0, done.stderr
                lines: dict[str, list[str]] = {}
                for line in done.stdout.splitlines():
                    lines.setdefault(line[:8].strip(), []).append(line[8:].strip())
                return lines

            answered = await person.say("hello")
            skipped = await person.say("nothing", session="quiet")
            failed = await person.say("break", session="broken")
            burst = [await person.say(f"line {n}", session="room", by=f"p{n}", shared=True) for n in range(3)]
            fates = {message_id: await person.settled(message_id) for message_id in (answered, skipped, failed, *burst)}

            said = await why(answered)
            assert said["state"] == ["answered"]
            assert said["reply"][0].startswith(fates[answered]["replies"][0]["id"])
            said = await why(skipped)
            assert (said["state"], "reply" in said) == (["skipped (not meant for me)"], False)
            said = await why(failed)
            assert said["state"][0].startswith("failed (standin/model: standin refused the request (400)")
            assert said["notice"][0].startswith(fates[failed]["replies"][0]["id"])
            for message_id in burst:
                said = await why(message_id)
                assert said["state"] == ["answered"]
                assert {line.removeprefix("together with ") for line in _together(said)} == {*burst} - {message_id}
            machine = json.loads((await run(daemon, "why", "--json", burst[0])).stdout)
            assert (machine["state"], set(machine["coalesced_with"])) == ("answered", set(burst[1:]))
            unknown = await run(daemon, "why", "no-such-id")
            assert (unknown.returncode, "no-such-id" in unknown.stderr) == (1, True)


def _together(said: dict[str, list[str]]) -> list[str]:
    return [line.removeprefix("with ") for line in said["together"]]


async def test_a_burst_of_several_people_is_one_turn_and_a_direct_chat_never_waits(tmp_path: Path) -> None:
    patient = "\n[defaults.coalesce]\ndebounce_ms = 6000\nmax_wait_ms = 30000\n"  # longer than a busy machine needs
    async with serve_openai(obedient) as model:
        async with up(Daemon(tmp_path, model_url=model.url, extra=patient)) as person:
            room = [await person.say(f"line {n}", session="room", by=f"p{n % 3}", shared=True) for n in range(6)]
            direct = await person.say("line", session="direct")
            assert (await person.settled(direct))["replies"][0]["content"] == "heard 1"
            assert (await person.fate(room[0]))["state"] == "accepted", "the room still listens"
            fates = [await person.settled(message_id) for message_id in room]
            assert len({fate["turn_id"] for fate in fates}) == 1
            history = await person.history("room")
    prompts = [read_request(body).prompt for body in model.bodies if "line 5" in str(body)]
    assert len(prompts) == 1
    assert "6 messages from 3 people" in prompts[0]
    assert [n for n in range(6) if f"p{n % 3}: line {n}" in prompts[0]] == [*range(6)]
    assert [row["content"] for row in history][6:] == ["heard 6"]
    assert history[-1]["reply_to"] == room[-1]


async def test_readers_that_lag_or_come_back_see_each_reply_once(tmp_path: Path) -> None:
    """The messages of people go through the streams too: long ones fill what lies between daemon and reader."""
    count, size = 50, 100_000
    seen: dict[str, list[str]] = {"quick": [], "lagging": [], "returning": []}
    async with serve_openai(lambda body: reply(f"up to {read_request(body).said.rpartition('#')[2]}")) as model:
        daemon = Daemon(tmp_path, model_url=model.url)
        async with up(daemon) as person:
            begun, quick_done, may_read = trio.Event(), trio.Event(), trio.Event()

            async def quick() -> None:
                async with following(daemon) as reader:
                    while not _is_last(seen["quick"]):
                        seen["quick"].append((await reader.said())[1])
                        begun.set()
                quick_done.set()

            async def lagging() -> None:
                async with following(daemon) as reader:
                    seen["lagging"].append((await reader.said())[1])
                    await may_read.wait()
                    while not _is_last(seen["lagging"]):
                        seen["lagging"].append((await reader.said())[1])

            async def returning() -> None:
                last = 0
                while not _is_last(seen["returning"]):
                    async with following(daemon, after=last) as reader:
                        last, text = await reader.said()
                        seen["returning"].append(text)

            def _is_last(texts: list[str]) -> bool:
                return f"up to {count}" in texts[-1:]

            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lagging)
                    nursery.start_soon(returning)
                    nursery.start_soon(quick)
                    await person.say("#0")
                    await begun.wait()
                    for number in range(1, count + 1):
                        await person.say("x" * size + f" #{number}")
                    await quick_done.wait()
                    may_read.set()
            replies = [row["content"] for row in await person.history() if row["role"] == "assistant"]
    assert len(replies) > 2
    assert seen == dict.fromkeys(seen, replies)


async def test_a_late_result_reaches_who_comes_later_and_who_asked_from_afar(tmp_path: Path) -> None:
    async with serve_openai(obedient) as model:
        daemon = Daemon(tmp_path, model_url=model.url)
        async with up(daemon) as person:
            asked = await person.say("work")
            assert (await person.settled(asked))["replies"][0]["content"] == "On it."
            await person.wait_running("worker", bool)
            await person.leave()  # nobody is there
            (tmp_path / "agents" / "main" / "workspace" / "go").touch()
            await wait_for(lambda: _log_has(person, "It came back"))
            later = Person(daemon)
            with trio.fail_after(PATIENCE_S):
                async with following(daemon, after=1) as reader:
                    texts = [(await reader.said())[1] for _ in range(2)]
            fate = await later.fate(asked)
            await later.leave()
    assert texts == ["On it.", "It came back: the work is done"]
    assert [reply["content"] for reply in fate["replies"]] == texts
    assert [run["state"] for run in fate["runs"]] == ["done"]


async def _log_has(person: Person, part: str) -> bool:
    """Looks at the channel list's page, so that no session of the chat is opened."""
    page = await person.get("/api/channels/messages?channel_id=webchat:s&limit=100")
    return any(part in item["content"] for item in page["items"] if item["type"] == "message")
