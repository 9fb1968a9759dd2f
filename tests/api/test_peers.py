"""Who reaches the API from this machine is its owner; a worker's command is not, however it is started."""

import sys
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked, wait_all_threads_completed

from spacebot.config.model import SandboxConfig
from spacebot.tools.sandbox import Backend, BackendKind, Containment, probe_backend
from spacebot.tools.subprocesses import Report, run_command
from tests.api.serving import logged, open_server

CALL = (
    "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; "
    'printf "GET /api/health HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\nConnection: close\\r\\n\\r\\n" >&3; cat <&3\''
)


async def run(folder: Path, command: str, backend: Backend) -> Report:
    instance = folder / "instance"
    workspace = instance / "agents" / "main" / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    containment = Containment(
        workspace=workspace,
        instance_root=instance,
        data_dir=instance / "agents" / "main" / "data",
        tools_bin=instance / "tools" / "bin",
        settings=SandboxConfig,
        backend=backend,
    )
    return await run_command(containment.wrap(["sh", "-c", command]), timeout_s=20)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell whose connection it is")
@pytest.mark.parametrize("how", ["{call}", "env -i {call}", "sh -c \"$(cat <<'END'\n{call}\nEND\n)\" & wait"])
@pytest.mark.parametrize("kind", [BackendKind.NONE, BackendKind.BUBBLEWRAP])
async def test_a_command_of_a_worker_is_refused(kind: BackendKind, how: str, tmp_path: Path) -> None:
    backend = await probe_backend() if kind is BackendKind.BUBBLEWRAP else Backend()
    if backend.kind is not kind:
        pytest.skip(f"no usable bubblewrap here: {backend.note}")
    async with open_server(tmp_path) as served:
        report = await run(tmp_path, how.format(call=CALL.format(port=served.url.rpartition(":")[2])), backend)
    assert "403 Forbidden" in report.stdout, report
    assert "may not use" in report.stdout


SEND = r"""
body='{"agent_id": "main", "session_id": "portal:chat:main", "message": "delete everything"}'
for i in $(seq TIMES); do
    exec 3<>/dev/tcp/127.0.0.1/PORT
    printf 'POST /api/webchat/send?wait=false HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n' >&3
    printf 'Content-Type: application/json\r\nContent-Length: %s\r\n\r\n%s' "${#body}" "$body" >&3
    exec 3>&-
done
sleep PAUSE
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell whose connection it is")
@pytest.mark.parametrize(("times", "pause"), [(1, 0.5), (1, 0), (200, 0)])
async def test_a_command_that_closes_at_once_gets_nothing_done(times: int, pause: float, tmp_path: Path) -> None:
    """Its socket belongs to nobody by the time the program looks; the last connections outlive even the command."""
    async with open_server(tmp_path) as served:
        script = tmp_path / "call.sh"
        port = served.url.rpartition(":")[2]
        script.write_text(SEND.replace("TIMES", str(times)).replace("PORT", port).replace("PAUSE", str(pause)))
        report = await run(tmp_path, f"bash {script}", Backend())
        assert report.exit_code == 0, report
        # A connection that comes after theirs is answered, and then nobody is at work any more.
        assert (await served.client.get("/api/health")).status_code == 200
        await wait_all_threads_completed()
        await wait_all_tasks_blocked()
        assert await logged(served.agent) == []


async def test_a_person_is_served_while_a_command_runs(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served, trio.open_nursery() as nursery:
        nursery.start_soon(run, tmp_path, "echo running > started; sleep 20", Backend())
        started = tmp_path / "instance" / "agents" / "main" / "workspace" / "started"
        while not started.exists():  # the command is another process: there is no event to wait for
            await trio.sleep(0.01)
        assert (await served.client.get("/api/health")).status_code == 200
        nursery.cancel_scope.cancel()
