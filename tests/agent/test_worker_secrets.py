"""Secrets and workers: a command has the variables that were meant for it and no others, and nobody reads a value."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.base import redaction
from spacebot.base.events import EventKind
from spacebot.base.redaction import MASK
from spacebot.config.model import SandboxConfig
from spacebot.llm.messages import ProcessKind
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import Category, SecretStore
from spacebot.tools.sandbox import BackendKind, Containment, probe_backend
from spacebot.tools.subprocesses import run_command
from tests.fakes.opened import open_test_agent
from tests.fakes.scripted_model import Call, Calls, ScriptedModel

SYSTEM, TOOL = "sys-value-3141592653", "tool-value-2718281828"
SCRIPT = """
[ "$DEPLOY_TOKEN" = "tool-value-$((2718281800 + 28))" ] && echo it is the right one
echo "system: ${MY_KEY:-none}"
echo "plain $DEPLOY_TOKEN"
printf %s "$DEPLOY_TOKEN" | base64
printf %s "user:$DEPLOY_TOKEN" | base64
printf %s "$DEPLOY_TOKEN" | od -An -v -tx1 | tr -d ' \\n'; echo
printf '%s' "${DEPLOY_TOKEN%28}"; sleep 0.05; echo 28
env | grep -c ^MY_KEY=
"""


@pytest.mark.spec("P69")
async def test_a_command_gets_the_tools_variables_and_their_values_stay_unseen(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "_known", redaction._Known())
    store = SecretStore(tmp_path)
    store.set("MY_KEY", SYSTEM)
    store.set("DEPLOY_TOKEN", TOOL, Category.TOOL)
    secrets = LiveSecrets.open(tmp_path)
    model = ScriptedModel(
        Calls(Call("spawn_worker", task="deploy it"), Call("reply", content="on it")),
        Call("reply", content="done"),
        worker=[
            Call("shell", command=SCRIPT),
            Call("shell", command=f"cat {tmp_path}/secret.key {tmp_path}/secrets.db"),
            Call("file", operation="read", path=str(tmp_path / "secret.key")),
            Call("set_status", kind="outcome", status="deployed"),
        ],
    )
    async with open_test_agent(tmp_path, model, tool_secrets=secrets.tool_environment) as opened:
        await opened.say("Ann", "deploy")
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        shown = [result.text for result in model.results_of(ProcessKind.WORKER)]
        assert "it is the right one" in shown[0]
        assert "system: none" in shown[0]
        assert shown[0].count(MASK) == 5
        everything = opened.story() + "".join(shown)
        for value in (TOOL, SYSTEM, TOOL.encode().hex(), "dG9vbC12YWx1ZS0y"):
            assert value not in everything
        key = (tmp_path / "secret.key").read_text().strip()
        assert not any(key in text for text in shown)  # nothing contains the command here, and yet
        database = opened.database().read_bytes() + Path(f"{opened.database()}-wal").read_bytes()
        assert TOOL.encode() not in database


async def test_a_contained_command_finds_neither_store_nor_key(tmp_path: Path) -> None:
    """Not even where the owner lets workers work in a folder above the instance."""
    backend = await probe_backend()
    if backend.kind is BackendKind.NONE:
        pytest.skip(f"nothing contains commands here: {backend.note}")
    instance = tmp_path / "home" / ".spacebot"
    instance.mkdir(parents=True)
    SecretStore(instance).set("MY_KEY", SYSTEM)
    containment = Containment(
        workspace=tmp_path / "home",
        instance_root=instance,
        data_dir=instance / "agents" / "main" / "data",
        tools_bin=instance / "tools" / "bin",
        settings=SandboxConfig,
        backend=backend,
    )
    script = (
        f"ls -A {instance}; cat {instance}/secret.key {instance}/secrets.db; find / -name 'secret*.key' 2>/dev/null"
    )
    report = await run_command(
        await trio.to_thread.run_sync(lambda: containment.wrap(["sh", "-c", script])), timeout_s=60
    )
    assert "No such file" in report.stderr
    assert "secret" not in report.stdout
    assert (instance / "secret.key").exists()
