"""What the owner edits counts at once: the next request to the model has it, and no restart is needed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.flows.stories import DIALECTS, Asked, Person, log_of, read_request, reply, run, up, wait_for, wait_for_log
from tests.real_daemon import Daemon
from tests.stand_ins.serving import ModelStandIn

BROKEN = "{{ soul }} {% if %}"


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Daemon, Person, ModelStandIn]]:
    """A daemon whose model answers everything."""
    async with DIALECTS["openai_completions"](lambda body: reply("fine")) as model:
        daemon = Daemon(folder, model_url=model.url)
        async with up(daemon) as person:
            yield daemon, person, model


async def seen(person: Person, model: ModelStandIn) -> Asked:
    """Say something; returns what the model saw."""
    assert await person.answer("hello") == "fine"
    return read_request(model.bodies[-1])


async def test_identity_and_prompts_reach_the_next_request(tmp_path: Path) -> None:
    async with running(tmp_path) as (daemon, person, model):
        before = await seen(person, model)
        soul = tmp_path / "agents" / "main" / "SOUL.md"
        soul.write_text("You speak like a pirate.\n")
        await wait_for_log(daemon, "prompts reloaded", "soul")
        after = await seen(person, model)
        assert "like a pirate" in after.system
        assert "like a pirate" not in before.system

        override = tmp_path / "prompts" / "CHANNEL.md"
        override.write_text("My own channel. {{ soul }} {{ current_time }}")
        assert await person.post("/api/prompts/reload") == (200, {"success": True, "changed": ["CHANNEL"]})
        own = await seen(person, model)
        assert own.system.startswith("My own channel. You speak like a pirate. ")

        nearer = tmp_path / "agents" / "main" / "prompts" / "CHANNEL.md"
        nearer.write_text("Nearer to the agent.")
        assert (await run(daemon, "prompts", "reload")).stdout == "CHANNEL\n"
        assert (await seen(person, model)).system == "Nearer to the agent."

        nearer.unlink()
        override.unlink()
        assert (await run(daemon, "prompts", "reload")).stdout == "CHANNEL\n"
        assert (await seen(person, model)).system == after.system
        assert (await run(daemon, "prompts", "reload")).stderr == "nothing has changed\n"


async def test_skills_reach_the_next_request(tmp_path: Path) -> None:
    """Dropped into a folder, installed by a command, taken away again."""
    async with running(tmp_path) as (daemon, person, model):
        assert "<skills>" not in (await seen(person, model)).system
        folder = tmp_path / "skills" / "maps"
        folder.mkdir(parents=True)
        (folder / "SKILL.md").write_text("---\nname: maps\ndescription: Draws maps.\n---\nDraw.\n")
        await wait_for_log(daemon, "skills reloaded", "count=1")
        assert "- maps: Draws maps." in (await seen(person, model)).system
        source = tmp_path / "mine"
        folder.rename(source)
        await wait_for_log(daemon, "skills reloaded", "count=0")
        assert "<skills>" not in (await seen(person, model)).system
        assert (await run(daemon, "skill", "add", str(source))).stdout == "mine\n"

        async def is_known() -> bool:
            return "- maps: Draws maps." in (await seen(person, model)).system

        await wait_for(is_known)


async def test_a_broken_prompt_changes_nothing_and_is_reported(tmp_path: Path) -> None:
    async with running(tmp_path) as (daemon, person, model):
        before = await seen(person, model)
        (tmp_path / "agents" / "main" / "SOUL.md").write_text("A soul that waits.")
        override = tmp_path / "prompts" / "CHANNEL.md"
        override.write_text(BROKEN)
        status, said = await person.post("/api/prompts/reload")
        assert status == 409
        assert "prompt 'CHANNEL.md', line 1 is broken" in said["error"]
        done = await run(daemon, "prompts", "reload")
        assert done.returncode == 1
        assert "prompt 'CHANNEL.md', line 1 is broken" in done.stderr
        await wait_for_log(daemon, "CHANNEL.md", "is broken")  # the watcher's own look
        assert (await seen(person, model)).system == before.system
        override.unlink()
        await wait_for_log(daemon, "prompts reloaded", "soul")
        assert "A soul that waits." in (await seen(person, model)).system
        assert "Traceback" not in log_of(daemon)


async def test_a_prompt_that_breaks_only_when_it_is_used_is_told(tmp_path: Path) -> None:
    """A template may be sound without values and fail with them."""
    async with running(tmp_path) as (_daemon, person, model):
        override = tmp_path / "prompts" / "CHANNEL.md"
        override.write_text("{% if current_time %}{{ current_time.missing.part }}{% endif %}")
        assert (await person.post("/api/prompts/reload"))[0] == 200
        told = await person.answer("hello")
        assert told.startswith("Sorry, I stopped: prompt 'CHANNEL' cannot be rendered: ")
        override.unlink()
        assert (await person.post("/api/prompts/reload"))[0] == 200
        assert await person.answer("hello") == "fine"
        assert not model.bodies[:-1]


async def test_the_configuration_is_taken_over_live(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as (daemon, person, _model),
        DIALECTS["anthropic"](lambda body: reply("second")) as other,
    ):
        assert await person.answer("hello") == "fine"
        config = tmp_path / "config.toml"
        text = config.read_text()
        text = text.replace('channel = "standin/model"', 'channel = "other/better"')
        text += f'\n[llm.provider.other]\napi_type = "anthropic"\nbase_url = "{other.url}"\napi_key = "k"\n'
        config.write_text(text)
        await wait_for_log(daemon, "configuration reloaded")
        assert await person.answer("hello") == "second"
        assert other.bodies[0]["model"] == "better"
        assert (await person.get("/api/status"))["model"] == "other/better"
        assert "other/better" in (await run(daemon, "status")).stdout

        config.write_text(text.replace(f"port = {daemon.port}", "port = 1"))

        async def warned() -> bool:
            return "api.port" in log_of(daemon)

        await wait_for(warned)
        assert await person.answer("hello") == "second", "the port counts from the next start on"

        config.unlink()
        config.with_suffix(".new").write_text(text.replace("other/better", "standin/model"))
        config.with_suffix(".new").rename(config)  # as editors save

        async def first_again() -> Any:
            return await person.answer("hello")

        await wait_for(first_again, lambda answer: answer == "fine")
