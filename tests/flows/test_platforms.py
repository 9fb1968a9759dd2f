"""One daemon on all platforms at once, spoken to as people do: by their own wires."""

from pathlib import Path

import trio

from tests.real_daemon import Daemon, Http, free_port, running
from tests.stand_ins.openai import serve_openai
from tests.towns import mark, open_towns, until


async def test_one_daemon_serves_all_six_at_once(tmp_path: Path) -> None:
    port = free_port()
    webhook = f'[messaging.webhook]\nenabled = true\nport = {port}\nauth_token = "hook-secret"\n'
    async with serve_openai(mark) as model, open_towns(rooms=2) as towns:
        daemon = Daemon(tmp_path, model_url=model.url, extra="\n" + towns.config + webhook)
        with running(daemon):
            web, hook = Http(daemon.port), Http(port)

            async def connected() -> bool:
                _, status = await web.get("/api/messaging/status")
                return all(one["state"] == "connected" for one in status["instances"])

            with trio.fail_after(30):
                while not await connected():
                    await trio.sleep(0.05)
            for number, town in enumerate(towns):
                await town.say(0, "ann", f"m{number}1", addressed=True)
                await town.say(-1, "bob", f"m{number}2", addressed=True)
            for number, town in enumerate(towns):
                assert await until(lambda n=number, t=town: f"m{n}1" in " ".join(t.heard(0))), town.platform
                assert await until(lambda n=number, t=town: f"m{n}2" in " ".join(t.heard(-1, "bob"))), town.platform
            status, _ = await web.post(
                "/api/webchat/send?wait=false", {"agent_id": "main", "session_id": "s", "message": "m91 addressed"}
            )
            assert status == 202
            secret = {"X-Webhook-Token": "hook-secret"}
            status, receipt = await hook.post("/send", {"conversation_id": "c1", "content": "m92 addressed"}, secret)
            assert (status, receipt["status"]) == (202, "accepted")
            status, fetched = await hook.get("/poll/c1?wait=20", secret)
            assert [entry["content"] for entry in fetched["messages"]] == ["m92"]
            assert (await hook.get("/poll/c1", secret))[1]["messages"] == []
            assert (await hook.post("/send", {"conversation_id": "c1", "content": "x"}))[0] == 401

            async def answered() -> bool:
                _, history = await web.get("/api/webchat/history?agent_id=main&session_id=s")
                return "m91" in [line["content"] for line in history]

            with trio.fail_after(20):
                while not await answered():
                    await trio.sleep(0.05)
            shown = await trio.to_thread.run_sync(daemon.run, "messaging", "status")
            assert shown.stdout.count("connected as") == 5, shown.stdout
            await hook.close()
            await web.close()
        assert towns.complaints == []
