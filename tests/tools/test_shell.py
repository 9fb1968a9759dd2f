"""The shell and exec tools, with real processes: the border to the operating system is what is tested."""

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.base.errors import ToolError
from spacebot.base.redaction import LONGEST, MASK, register_secret
from spacebot.base.tree import Node, NodeKind, Tree
from spacebot.config.hands import PermissionsConfig
from spacebot.config.model import SandboxConfig
from spacebot.llm.messages import ToolCall
from spacebot.tools import subprocesses
from spacebot.tools.contract import ToolOutput, parse_arguments, schema_of
from spacebot.tools.permissions import Gate
from spacebot.tools.sandbox import Backend, BackendKind, Containment, Invocation, probe_backend
from spacebot.tools.shell import ExecArguments, ExecTool, ShellArguments, ShellTool
from spacebot.tools.subprocesses import OUTPUT_CAP, Ending, HeadAndTail, LineScrubber, Report, run_command

SECRET = "literal-secret-0123456789"
KEY = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n" * 20 + "-----END PRIVATE KEY-----"


@pytest.fixture(params=["contained", "bare"])
async def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "bare":
        return Backend(note="switched off by the test")
    found = await probe_backend()
    if found.kind is BackendKind.NONE:
        pytest.skip(f"no sandbox works here: {found.note}")
    return found


def contain(tmp_path: Path, backend: Backend | None = None, **permissions: object) -> Containment:
    owner = PermissionsConfig.model_validate(permissions)
    root = tmp_path / "inst"
    for folder in ("tools/bin", "agents/main/workspace", "agents/main/data"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    return Containment(
        workspace=root / "agents/main/workspace",
        instance_root=root,
        data_dir=root / "agents/main/data",
        tools_bin=root / "tools/bin",
        gate=Gate(lambda: owner),
        settings=SandboxConfig,
        backend=backend,
    )


def a_node() -> Node:
    return Tree().add(NodeKind.WORKER, "test")


async def shell(containment: Containment, command: str, **rest: object) -> ToolOutput:
    tool = ShellTool(containment=containment)
    arguments = ShellArguments.model_validate({"command": command, **rest})
    with trio.fail_after(30):
        return await tool.call(arguments, a_node())


def bare(command: str, folder: Path) -> Invocation:
    return Invocation(("sh", "-c", command), folder, {"PATH": os.defpath})


async def read_when_written(path: Path) -> str:
    """Waits in real time, whatever clock drives Trio."""
    with trio.fail_after(20):
        while not (path.exists() and path.read_text().endswith("\n")):
            await trio.to_thread.run_sync(os.sched_yield)
    return path.read_text()


def is_alive(marker: str) -> bool:
    """Whether a process with this word in its command line exists; ids differ inside of a sandbox."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_bytes().rpartition(b") ")[2][:1]
                if state not in b"ZX" and marker.encode() in (entry / "cmdline").read_bytes():
                    return True
            except OSError:
                continue
    return False


async def test_output_and_exit_code_are_reported_once(backend: Backend, tmp_path: Path) -> None:
    result = await shell(contain(tmp_path, backend), "echo out; echo err >&2; exit 3")
    assert result == ToolOutput("exit code 3\n--- stdout\nout\n--- stderr\nerr")


async def test_silence_is_said(tmp_path: Path) -> None:
    assert (await shell(contain(tmp_path), "true")).text == "exit code 0\n(no output)"


async def test_a_command_gets_the_end_of_input_at_once(backend: Backend, tmp_path: Path) -> None:
    assert (await shell(contain(tmp_path, backend), "read x || echo nothing")).text.endswith("nothing")


async def test_output_that_is_not_utf8_is_shown_as_far_as_possible(tmp_path: Path) -> None:
    result = await shell(contain(tmp_path), r"printf 'a\377b \303\244\n'")
    assert result.text.endswith("a\N{REPLACEMENT CHARACTER}b ä")


async def test_the_folder_and_the_variables_of_a_command_reach_it(backend: Backend, tmp_path: Path) -> None:
    containment = contain(tmp_path, backend)
    (containment.workspace / "sub").mkdir()
    result = await shell(containment, "pwd; echo $A", working_dir="sub", env=[{"key": "A", "value": "one two"}])
    assert result.text.splitlines()[2:] == [str(containment.workspace / "sub"), "one two"]


@pytest.mark.parametrize("folder", ["/", "..", "missing", "out", "file", "/etc"])
async def test_a_folder_outside_or_missing_is_refused(folder: str, tmp_path: Path) -> None:
    containment = contain(tmp_path)
    (containment.workspace / "out").symlink_to("/etc")
    (containment.workspace / "file").touch()
    with pytest.raises(ToolError):
        await shell(containment, "pwd", working_dir=folder)


@pytest.mark.parametrize("env", [[{"key": "LD_PRELOAD", "value": "x"}], {"HOME": "/"}])
async def test_a_forbidden_variable_is_refused_before_anything_runs(env: object, tmp_path: Path) -> None:
    containment = contain(tmp_path)
    with pytest.raises(ToolError):
        await shell(containment, "touch ran", env=env)
    assert not (containment.workspace / "ran").exists()


async def test_exec_passes_its_arguments_literally(backend: Backend, tmp_path: Path) -> None:
    tool = ExecTool(containment=contain(tmp_path, backend, exec="allow"))
    result = await tool.call(ExecArguments(program="printf", args=("%s|", "$HOME", "a b", "*")), a_node())
    assert result.text == "exit code 0\n--- stdout\n$HOME|a b|*|"


async def test_a_program_that_does_not_exist_is_an_error_that_says_so(backend: Backend, tmp_path: Path) -> None:
    tool = ExecTool(containment=contain(tmp_path, backend, exec="allow"))
    with pytest.raises(ToolError, match="not found"):
        await tool.call(ExecArguments(program="no-such-program"), a_node())


@pytest.mark.parametrize("bad", ["", "  ", "echo \0"])
async def test_an_empty_or_malformed_command_is_refused(bad: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError):
        await shell(contain(tmp_path), bad)


async def test_lone_surrogates_of_a_model_do_no_harm(tmp_path: Path) -> None:
    assert (await shell(contain(tmp_path), "echo \ud800")).text.startswith("exit code 0")


@pytest.mark.parametrize(("given", "used"), [("400", 300), (0, 1), (-5, 1), ("7", 7)])
async def test_the_time_out_is_clamped(given: object, used: int, tmp_path: Path, mock_clock: MockClock) -> None:
    """Tools spec, acceptance 6. The clock stands still until it is moved past the limit."""
    containment = contain(tmp_path)
    call = ToolCall(id="1", name="shell", arguments={"command": "echo on > on; sleep 1000", "timeout_seconds": given})
    tool = ShellTool(containment=containment)
    arguments = parse_arguments(tool, call)
    results: list[ToolOutput] = []

    async def run() -> None:
        assert isinstance(arguments, ShellArguments)
        results.append(await tool.call(arguments, a_node()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await read_when_written(containment.workspace / "on")
        mock_clock.jump(used)
    assert results[0].is_error
    assert results[0].text.startswith(f"exit code -1: ended after {used} seconds")


GRANDCHILDREN = {
    "in the group": "sleep {n} & wait",
    "in a session of its own": "setsid sleep {n} & wait",
    "twice forked": "(setsid sh -c 'sleep {n} & sleep {n}' &) ; sleep {n}",
    "deaf to the polite signal": "trap '' TERM; sh -c \"trap '' TERM; sleep {n}\" & sleep {n}; sleep {n}",
}


@pytest.mark.parametrize("kind", GRANDCHILDREN)
async def test_a_cancelled_command_takes_its_whole_family_along(kind: str, backend: Backend, tmp_path: Path) -> None:
    """Design, law 1: no process outlives its node."""
    containment = contain(tmp_path, backend)
    marker = f"{7_000_000 + abs(hash((str(tmp_path), kind))) % 900_000}"
    command = "echo on > on; " + GRANDCHILDREN[kind].format(n=marker)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell, containment, command)
        await read_when_written(containment.workspace / "on")
        while not is_alive(marker):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert not is_alive(marker)


async def test_a_time_out_takes_the_whole_family_along(backend: Backend, tmp_path: Path, mock_clock: MockClock) -> None:
    """Tools spec, acceptance 3."""
    containment = contain(tmp_path, backend)
    marker = f"{6_000_000 + abs(hash(str(tmp_path))) % 900_000}"
    command = "echo on > on; " + GRANDCHILDREN["twice forked"].format(n=marker)
    results: list[ToolOutput] = []

    async def run() -> None:
        tool = ShellTool(containment=containment)
        results.append(await tool.call(ShellArguments(command=command, timeout_seconds=60), a_node()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await read_when_written(containment.workspace / "on")
        while not is_alive(marker):
            await trio.to_thread.run_sync(os.sched_yield)
        mock_clock.jump(60)
    assert results[0].text.startswith("exit code -1: ended after 60 seconds")
    assert not is_alive(marker)


@pytest.mark.parametrize("kind", ["in the group", "in a session of its own"])
async def test_a_command_that_ends_leaves_no_child_behind(kind: str, backend: Backend, tmp_path: Path) -> None:
    """Tools spec, acceptance 3: nothing holds the pipes either, or the call would last as long as the child."""
    marker = f"{8_000_000 + abs(hash((str(tmp_path), kind))) % 900_000}"
    command = GRANDCHILDREN[kind].format(n=marker).removesuffix(" wait") + " echo done"
    result = await shell(contain(tmp_path, backend), command)
    assert result.text == "exit code 0\n--- stdout\ndone"
    assert not is_alive(marker)


async def test_the_polite_signal_comes_first(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command may remove its lock files; in a sandbox too, whose own program must not get the signal."""
    monkeypatch.setattr(subprocesses, "GRACE_S", 20.0)  # a busy machine may need more than the usual second
    containment = contain(tmp_path, backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell, containment, "trap 'echo bye > bye; exit' TERM; echo on > on; sleep 1000 & wait")
        await read_when_written(containment.workspace / "on")
        nursery.cancel_scope.cancel()
    assert (containment.workspace / "bye").exists()


@pytest.mark.slow
async def test_a_sandboxed_command_outlives_every_idle_thread(tmp_path: Path) -> None:
    """Past defect: started from a worker thread, it was killed when that thread had idled for ten seconds."""
    backend = await probe_backend()
    if backend.kind is BackendKind.NONE:
        pytest.skip(f"no sandbox works here: {backend.note}")
    result = await shell(contain(tmp_path, backend), "sleep 10.6; echo alive")
    assert result.text == "exit code 0\n--- stdout\nalive"


async def test_a_flood_is_ended_by_its_limit_and_keeps_head_and_tail(tmp_path: Path) -> None:
    command = "echo first line; yes some filling"
    with trio.fail_after(20):
        report = await run_command(bare(command, tmp_path), timeout_s=20, max_bytes=5_000_000)
    assert report.ending is Ending.TOO_MUCH
    assert report.exit_code == -1
    assert report.stdout.startswith("first line\nsome filling\n")
    assert len(report.stdout) < OUTPUT_CAP + 500


async def test_the_end_of_a_long_output_is_kept(backend: Backend, tmp_path: Path) -> None:
    result = await shell(contain(tmp_path, backend), "seq 1 200000; echo the error >&2")
    assert result.text.startswith("exit code 0\n--- stdout\n1\n2\n")
    assert "left out" in result.text
    assert result.text.endswith("200000\n--- stderr\nthe error")
    assert len(result.text.encode()) < OUTPUT_CAP + 1000


def test_memory_is_bounded_whatever_the_length() -> None:
    kept = HeadAndTail(1000)
    for number in range(10_000):
        kept.add(b"%d\n" % number)
        assert len(kept) <= 1000
    text = kept.render(1000)
    assert text.startswith("0\n1\n")
    assert text.endswith("\n9998\n9999\n")


@pytest.mark.parametrize("size", range(1, 60))
def test_a_text_that_fits_is_whole_however_it_is_cut(size: int) -> None:
    text = "aä€😀\n" * 5
    kept = HeadAndTail(200)
    data = text.encode()
    for start in range(0, len(data), size):
        kept.add(data[start : start + size])
    assert kept.render(200) == text


@pytest.mark.parametrize("limit", range(600, 640))
def test_a_cut_never_makes_half_a_character(limit: int) -> None:
    """Tools spec, acceptance 5."""
    kept = HeadAndTail(limit)
    kept.add(("ä€😀" * 600).encode())
    assert "\N{REPLACEMENT CHARACTER}" not in kept.render(limit)


async def test_secrets_are_removed_before_anybody_sees_the_output(tmp_path: Path) -> None:
    register_secret(SECRET)
    lines: list[tuple[str, str]] = []
    tool = ShellTool(containment=contain(tmp_path), on_output=lambda name, text: lines.append((name, text)))
    command = f"printf 'a {SECRET[:9]}'; sleep 0.05; printf '{SECRET[9:]} b\\n'; echo {SECRET} >&2"
    result = await tool.call(ShellArguments(command=command), a_node())
    assert result.text == f"exit code 0\n--- stdout\na {MASK} b\n--- stderr\n{MASK}"
    assert sorted(lines) == [("stderr", f"{MASK}\n"), ("stdout", f"a {MASK} b\n")]


@pytest.mark.parametrize("size", [1, 7, 30, 500])
def test_a_private_key_is_removed_however_it_arrives(size: int) -> None:
    scrubber = LineScrubber()
    data = f"before\n{KEY}\nafter\n".encode()
    text = "".join(scrubber.feed(data[start : start + size]) for start in range(0, len(data), size)) + scrubber.finish()
    assert text == f"before\n{MASK}\nafter\n"


@pytest.mark.parametrize("offset", range(0, 1200, 37))
def test_a_secret_on_a_cut_shows_no_half(offset: int) -> None:
    register_secret(SECRET)
    for secret, probe in ((SECRET, SECRET[-10:]), (KEY, "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC")):
        kept = HeadAndTail(1600)
        kept.add(f"{'.' * (offset + LONGEST)}{secret}\n{'-' * 5000}{secret}{'.' * (offset + LONGEST)}".encode())
        text = kept.render(1600)
        assert probe not in text
        assert SECRET[:10] not in text


QUESTIONS = ["Continue? [y/N] ", "Password: ", "Are you sure you want this? ", "Press any key to go on", "ok (yes/no)?"]


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_question_followed_by_silence_ends_the_command(question: str, tmp_path: Path) -> None:
    with trio.fail_after(20):
        report = await run_command(bare(f"printf '{question}'; sleep 1000", tmp_path), timeout_s=20, quiet_s=0.02)
    assert (report.ending, report.exit_code) == (Ending.WAITING, -2)
    assert question.strip() in report.stdout


async def test_a_quiet_command_is_left_alone(tmp_path: Path) -> None:
    command = "echo 'Passwords are kept in a file'; sleep 0.3; echo '[y/N] answered'; echo done; sleep 0.3"
    report = await run_command(bare(command, tmp_path), timeout_s=20, quiet_s=0.02)
    assert (report.ending, report.exit_code) == (Ending.EXITED, 0)


async def test_output_is_a_sign_of_life(tmp_path: Path, mock_clock: MockClock) -> None:
    node = a_node()
    begun = node.last_progress_at
    mock_clock.jump(5)
    await ShellTool(containment=contain(tmp_path)).call(ShellArguments(command="echo x"), node)
    assert node.last_progress_at == begun + 5


async def test_a_command_killed_by_a_signal_is_reported_as_such(tmp_path: Path) -> None:
    report: Report = await run_command(bare("kill -SEGV $$", tmp_path), timeout_s=20)
    assert (report.ending, report.exit_code, report.signal_name) == (Ending.SIGNALLED, -1, "SIGSEGV")


@pytest.mark.parametrize("arguments", [ShellArguments, ExecArguments])
def test_the_schemas_are_plain_objects(arguments: type[ShellArguments]) -> None:
    schema = schema_of(arguments)
    assert schema["type"] == "object"
    assert "$ref" not in str(schema)


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    await run_command(bare("true", tmp_path), timeout_s=20)
    before = count()
    for _ in range(5):
        await run_command(bare("true", tmp_path), timeout_s=20)
        with pytest.raises(ToolError):
            await run_command(Invocation(("no-such-program",), tmp_path, {"PATH": "/bin"}), timeout_s=20)
    assert count() == before
