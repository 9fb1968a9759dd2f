"""The owner's permissions, as every tool meets them: profiles, keys, and that a change holds at the next call."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio

from spacebot.base.errors import ToolError
from spacebot.base.fetch import open_fetcher
from spacebot.base.tree import Node, NodeKind, Tree
from spacebot.config.hands import PROFILES, PermissionsConfig, Profile
from spacebot.config.load import load_config
from spacebot.config.model import AgentConfig, SandboxConfig
from spacebot.llm.messages import ToolCall
from spacebot.tools.contract import ToolOutput, parse_arguments
from spacebot.tools.files import FileTool
from spacebot.tools.permissions import Gate, NotPermittedError, Right, words_of
from spacebot.tools.sandbox import Backend, BackendKind, Containment, probe_backend
from spacebot.tools.shell import ExecTool, ShellTool
from spacebot.tools.web_search import SearchService, WebSearch

BARE = Backend(note="switched off by the test")


class Owner:
    """A workspace whose owner changes his mind, with the tools of one worker.

    Beside the workspace lie `notes/` (a.md, b.txt, deep/c.md) and the instance's own files.
    """

    def __init__(self, root: Path, backend: Backend, *, notes: Path | None = None, **permissions: object) -> None:
        self.root = root / "inst"
        self.notes = notes or root / "notes"
        for folder in ("tools/bin", "agents/main/workspace/ingest", "agents/main/data", "agents/other/workspace"):
            (self.root / folder).mkdir(parents=True)
        (self.notes / "deep").mkdir(parents=True, exist_ok=True)
        for name in ("a.md", "b.txt", "deep/c.md"):
            (self.notes / name).write_text(f"note {name}")
        (self.root / "config.toml").write_text("token = 'hush'")
        (self.root / "agents/other/workspace/diary").write_text("of the other agent")
        self.sandbox: dict[str, Any] = {}
        self.others: list[Path] = []
        self.permit(**permissions)
        self.containment = Containment(
            workspace=self.root / "agents/main/workspace",
            instance_root=self.root,
            data_dir=self.root / "agents/main/data",
            tools_bin=self.root / "tools/bin",
            others=lambda: self.others,
            gate=Gate(lambda: self.permissions),
            settings=lambda: SandboxConfig.model_validate(self.sandbox),
            backend=backend,
            inherited={"PATH": os.environ["PATH"]},
        ).view("worker-1")
        self.workspace = self.containment.workspace

    def permit(self, **permissions: object) -> None:
        """Write the table anew."""
        self.permissions = PermissionsConfig.model_validate(permissions)

    async def __call__(self, name: str, **arguments: object) -> str:
        tools = {tool.name: tool(containment=self.containment) for tool in (ShellTool, ExecTool, FileTool)}
        tool = tools[name]
        call = ToolCall("1", name, arguments, "")
        with trio.fail_after(60):
            output: ToolOutput = await tool.call(parse_arguments(tool, call), a_node())  # type: ignore[arg-type]
        return output.text

    async def sh(self, command: str) -> str:
        return await self("shell", command=command)

    async def read(self, path: object) -> str:
        return await self("file", operation="read", path=str(path))

    async def write(self, path: object) -> str:
        return await self("file", operation="write", path=str(path), content="new")


def a_node() -> Node:
    return Tree().add(NodeKind.WORKER, "test")


@contextmanager
def denied(key: str) -> Iterator[None]:
    """The block is refused, with an answer that names the key and what to do."""
    with pytest.raises(NotPermittedError) as caught:
        yield
    answer = json.loads(str(caught.value))
    assert answer["denied"] is True
    assert answer["tool"]
    assert answer["reason"]
    assert key in answer["remedy"]
    assert "tell the user" in answer["remedy"]


@pytest.fixture(scope="module")
def found() -> Backend:
    return trio.run(probe_backend)


@pytest.fixture
def contained(found: Backend) -> Backend:
    if found.kind is not BackendKind.BUBBLEWRAP:
        pytest.skip(f"no usable bubblewrap here: {found.note}")
    return found


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder of the machine outside of /tmp, which is every worker's own."""
    with TemporaryDirectory(dir=Path.home(), prefix=".spacebot-test-") as folder:
        yield Path(folder).resolve()


# Profiles


async def test_a_restricted_agent_keeps_its_tools_and_each_says_why_it_does_nothing(tmp_path: Path) -> None:
    owner = Owner(tmp_path, BARE, profile="restricted")
    (owner.workspace / "f").write_text("x")
    with denied("shell"):
        await owner.sh("touch ran")
    with denied("exec"):
        await owner("exec", program="git")
    for operation in ("read", "list", "search"):
        with denied("file_read"):
            await owner("file", operation=operation, path=".", pattern="x")
    for operation in ("write", "edit"):
        with denied("file_write"):
            await owner("file", operation=operation, path="f", content="y", old_string="x", new_string="y")
    assert sorted(os.listdir(owner.workspace)) == ["f", "ingest"]
    gate = owner.containment.gate
    assert not any(gate.allows(right) for right in Right)
    async with open_fetcher() as fetcher:
        search = WebSearch(fetcher=fetcher, service=lambda: SearchService("key"), gate=gate)
        with denied("network_outbound"):
            await search.call(parse_arguments(search, ToolCall("1", "web_search", {"query": "q"}, "")), a_node())
    with denied("network_outbound"):
        await gate.check_url("https://example.com/", tool="fetch")
    with denied("browser"):
        await gate.check_page("https://example.com/")


async def test_a_change_of_the_file_holds_at_the_next_call(tmp_path: Path) -> None:
    owner = Owner(tmp_path, BARE)
    assert "exit code 0" in await owner.sh("true")
    owner.permit(profile="restricted")
    with denied("shell"):
        await owner.sh("true")
    owner.permit(profile="restricted", shell="workspace", network_outbound=True)
    assert "exit code 0" in await owner.sh("true")


async def test_keys_of_the_owner_go_over_the_profile() -> None:
    gate = Gate(lambda: PermissionsConfig.model_validate({"profile": "trusted", "browser": False}))
    assert gate.allows("shell")
    with denied("browser"):
        gate.require("browser", tool="browser")
    offline = Gate(lambda: PermissionsConfig.model_validate({"network_outbound": False}))
    with denied("network_outbound"):  # a browser without the network makes no sense
        offline.require(Right.BROWSER)
    with denied("browser_js_eval"):
        offline.require("browser_js_eval")


async def test_a_trusted_agent_has_the_machine_and_still_not_the_instance(
    tmp_path: Path, elsewhere: Path, contained: Backend
) -> None:
    owner = Owner(tmp_path, contained, notes=elsewhere, profile="trusted")
    secrets = [owner.root / "config.toml", owner.root / "agents/other/workspace/diary"]
    assert await owner.read(owner.notes / "b.txt") == "note b.txt"
    await owner.write(owner.notes / "new")
    seen = await owner.sh(f"cat {owner.notes}/new; echo more > {owner.notes}/more; cat {' '.join(map(str, secrets))}")
    assert "new" in seen
    assert "hush" not in seen
    assert "other agent" not in seen
    assert (owner.notes / "more").read_text() == "more\n"
    for path in (*secrets, "/proc/self/environ", f"/proc/{os.getpid()}/environ"):
        with denied("file_read"):
            await owner.read(path)
    with denied("file_write"):
        await owner.write(owner.root / "config.toml")
    # Nothing but its own processes, although it sees the root of the disk.
    assert "PYTEST_CURRENT_TEST" not in await owner.sh("cat /proc/*/environ | tr '\\0' '\\n'")


async def test_a_machine_that_may_be_read_is_not_written_and_its_services_are_not_talked_to(
    tmp_path: Path, elsewhere: Path, contained: Backend
) -> None:
    owner = Owner(tmp_path, contained, notes=elsewhere, file_read="allow")
    said = await owner.sh(
        f"cat {elsewhere}/a.md; echo x > {elsewhere}/new; cat {owner.root}/config.toml; ls /run; echo in > here"
    )
    assert "note a.md" in said
    assert "hush" not in said
    assert not (elsewhere / "new").exists()
    assert (owner.workspace / "here").read_text() == "in\n"
    listed = said.partition("--- stderr")[0].splitlines()
    assert not [name for name in listed if Path("/run", name).is_socket() or name in ("docker.sock", "user")]
    with denied("file_read"):
        await owner.read("/run/anything")


async def test_the_workspace_of_another_agent_is_nobodys_business(
    tmp_path: Path, elsewhere: Path, contained: Backend
) -> None:
    """It lies where its owner wants it, not in the instance; what he shares on purpose is open all the same."""
    owner = Owner(tmp_path, contained, notes=elsewhere, profile="trusted")
    owner.others = [elsewhere]
    assert "note" not in await owner.sh(f"cat {elsewhere}/a.md")
    with denied("file_read"):
        await owner.read(elsewhere / "a.md")
    owner.sandbox = {"writable_paths": [str(elsewhere)]}
    assert "note a.md" in await owner.sh(f"cat {elsewhere}/a.md")


# Files


async def test_a_trusted_file_tool_follows_links_and_judges_where_they_lead(tmp_path: Path) -> None:
    owner = Owner(tmp_path, BARE, profile="trusted")
    (owner.notes / "good").symlink_to(owner.notes / "a.md")
    (owner.notes / "bad").symlink_to(owner.root / "config.toml")
    assert await owner.read(owner.notes / "good") == "note a.md"
    with denied("file_read"):
        await owner.read(owner.notes / "bad")


@pytest.mark.parametrize(
    ("pattern", "open_ones"),
    [
        ("{notes}/*.md", {"a.md"}),
        ("{notes}/**/*.md", {"a.md", "deep/c.md"}),
        ("{notes}/**", {"a.md", "b.txt", "deep/c.md"}),
        ("{notes}/b.txt", {"b.txt"}),
        ("{notes}/deep", {"deep/c.md"}),
        ("{root}/**", set()),
        ("{root}/config.toml", set()),
        ("{root}/agents/*/workspace/*", set()),
    ],
)
async def test_patterns_open_exactly_what_fits_beside_the_workspace(
    pattern: str, open_ones: set[str], tmp_path: Path
) -> None:
    pattern = pattern.format(notes=tmp_path / "notes", root=tmp_path / "inst")
    owner = Owner(tmp_path, BARE, file_read=[pattern])
    (owner.workspace / "own").write_text("own")
    readable = set()
    for name in ("a.md", "b.txt", "deep/c.md"):
        try:
            assert await owner.read(owner.notes / name) == f"note {name}"
        except NotPermittedError:
            continue
        readable.add(name)
    assert readable == open_ones
    assert await owner.read("own") == "own"
    for path in (owner.root / "config.toml", owner.root / "agents/other/workspace/diary"):
        with denied("file_read"):
            await owner.read(path)
    with denied("file_write"):
        await owner.write(owner.notes / "a.md")


async def test_a_list_and_a_search_show_only_what_fits(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    owner = Owner(tmp_path, BARE, file_read=[f"{notes}", f"{notes}/*.md"])
    assert "b.txt" in await owner("file", operation="list", path=str(notes))
    owner.permit(file_read=[f"{notes}/**/*.md", str(notes / "deep")])
    assert "c.md" in await owner("file", operation="search", path=str(notes / "deep"), pattern="note")
    owner.permit(file_read=[f"{notes}/*p", f"{notes}/deep/*.md"])  # the folder itself, and some of what lies in it
    (notes / "deep/hidden.txt").write_text("note hidden")
    assert "hidden" not in await owner("file", operation="list", path=str(notes / "deep"))
    assert "hidden" not in await owner("file", operation="search", path=str(notes / "deep"), pattern="note")
    assert "hidden" not in await owner("file", operation="search", path=str(notes / "deep"), glob="*")


async def test_commands_see_the_folder_that_a_pattern_begins_with(tmp_path: Path, contained: Backend) -> None:
    """A mount knows no patterns: this is the stated difference to the file tool."""
    notes = tmp_path / "notes"
    owner = Owner(tmp_path, contained, file_read=[f"{notes}/deep/*.none"])
    seen = await owner.sh(f"cat {notes}/deep/c.md; cat {notes}/a.md; echo x > {notes}/deep/new")
    assert "note deep/c.md" in seen
    assert "note a.md" not in seen
    assert not (notes / "deep/new").exists()
    owner.permit(file_read=[f"{notes}/**"], file_write=[f"{notes}/deep/**"])
    await owner.sh(f"echo x > {notes}/deep/new; echo x > {notes}/new")
    assert (notes / "deep/new").exists()
    assert not (notes / "new").exists()


async def test_denied_writing_makes_the_workspace_read_only_for_commands_too(
    tmp_path: Path, contained: Backend
) -> None:
    owner = Owner(tmp_path, contained, file_write="deny")
    (owner.workspace / "f").write_text("kept")
    assert "kept" in await owner.sh("cat f; echo new > f; echo made > g; echo scratch > /tmp/x")
    assert (owner.workspace / "f").read_text() == "kept"
    assert not (owner.workspace / "g").exists()
    owner.permit(file_read="deny")
    assert "kept" not in await owner.sh(f"pwd; cat {owner.workspace}/f")
    with denied("file_read"):  # what an edit answers tells what is in the file
        await owner("file", operation="edit", path="f", old_string="kept", new_string="x")


async def test_writing_without_reading_is_possible_for_the_file_tool(tmp_path: Path) -> None:
    owner = Owner(tmp_path, BARE, file_read="deny")
    await owner.write("report")
    assert (owner.workspace / "report").read_text() == "new"
    with denied("file_read"):
        await owner.read("report")


# Programs


async def test_exec_starts_listed_programs_only_and_none_that_a_worker_put_there(
    tmp_path: Path, contained: Backend
) -> None:
    owner = Owner(tmp_path, contained)
    assert "Python 3" in await owner("exec", program="python3", args=["--version"])
    for program in ("ls", "sh", "/bin/sh", "python3.99", "./git", "git", str(owner.workspace / "git"), "/tmp/git"):
        (owner.workspace / "git").write_text("#!/bin/sh\necho mine\n")
        (owner.workspace / "git").chmod(0o755)
        owner.permit(exec_allowlist=["git"] if "/" in program else ["python3"])
        with denied("exec_allowlist") if program != "/tmp/git" else pytest.raises(ToolError):
            await owner("exec", program=program)
    link = owner.root / "tools/bin/git"
    link.symlink_to(owner.workspace / "git")  # the owner's own folder, but what it leads to is the worker's
    owner.permit(exec_allowlist=["git"])
    text = await _text_or_refusal(owner, "git")
    assert "mine" not in text
    owner.permit(exec="allow")
    assert "mine" in await owner("exec", program=str(owner.workspace / "git"))


async def _text_or_refusal(owner: Owner, program: str) -> str:
    try:
        return await owner("exec", program=program, args=["--version"])
    except ToolError as error:
        return str(error)


# Network


@contextmanager
def listening() -> Iterator[int]:
    """A server on this machine that says "reached" to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def answer() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"reached")
                    connection.close()
            except OSError:
                return

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


async def test_without_the_network_a_command_reaches_nothing(tmp_path: Path, contained: Backend) -> None:
    if not contained.can_cut_network:
        pytest.skip("the network cannot be cut here")
    owner = Owner(tmp_path, contained)
    with listening() as port:
        probe = f"python3 -c \"import socket; print(socket.create_connection(('127.0.0.1', {port}), 5).recv(9))\""
        assert "reached" in await owner.sh(probe)
        owner.permit(network_outbound=False)
        assert "reached" not in await owner.sh(probe)
        program = owner.containment.wrap_program(["true"])
        assert "--unshare-net" in program.argv
        assert "--unshare-net" not in owner.containment.wrap_program(["true"], has_network=True).argv


async def test_where_the_network_cannot_be_cut_commands_are_refused(tmp_path: Path, found: Backend) -> None:
    owner = Owner(tmp_path, BARE, network_outbound=False)
    with denied("network_outbound"):
        await owner.sh("true")
    (owner.workspace / "f").write_text("needle")
    assert "needle" in await owner("file", operation="search", pattern="needle")  # needs no network
    owner.sandbox = {"mode": "disabled"}
    with denied("network_outbound"):
        await owner.sh("true")


# Addresses


async def test_addresses_of_private_networks_are_refused_unless_the_owner_lists_them() -> None:
    table: dict[str, object] = {}
    gate = Gate(lambda: PermissionsConfig.model_validate(table))
    for url in ("http://127.0.0.1:8080/", "http://localhost/", "http://10.0.0.7/", "file:///etc/passwd"):
        with denied("network_allow_private"):
            await gate.check_url(url, tool="browser")
    table["network_allow_private"] = ["127.0.0.1:8080", "LOCALHOST"]
    assert (await gate.check_url("http://127.0.0.1:8080/x", tool="browser")).port == 8080
    assert (await gate.check_url("http://localhost/", tool="browser")).host == "localhost"
    with denied("network_allow_private"):
        await gate.check_url("http://127.0.0.1:9090/", tool="browser")
    table["network_allow_private"] = True
    await gate.check_url("http://10.0.0.7/", tool="browser")
    with denied("network_allow_private"):
        await gate.check_url("http://169.254.169.254/", tool="browser")


@pytest.mark.parametrize(
    ("pattern", "url", "fits"),
    [
        ("example.com", "https://example.com/any?x=1", True),
        ("example.com", "https://sub.example.com/", False),
        ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://evil.test/x.example.com", False),
        ("*.example.com", "https://example.com.evil.test/", False),
        ("https://example.com/docs/*", "https://example.com/docs/a?b", True),
        ("https://example.com/docs/*", "https://example.com/private", False),
        ("https://example.com/*", "http://example.com/", False),
        ("https://*.example.com/*", "https://evil.test/a.example.com/x", False),
        ("http://localhost:*", "http://localhost:8080/x", True),
        ("http://localhost", "http://localhost:8080/", False),
        ("example.com/a?b=[1]", "https://EXAMPLE.com/a?b=[1]", True),
        ("*", "https://anything.test/", True),
        ("example.com", "https://user@example.com/", False),
    ],
)
def test_a_list_of_pages_is_matched_part_by_part(pattern: str, url: str, fits: bool) -> None:
    gate = Gate(lambda: PermissionsConfig(browser_url_allowlist=(pattern,)))
    assert gate.fits_allowlist(url) is fits


async def test_a_page_beside_the_list_is_refused_with_the_list() -> None:
    gate = Gate(lambda: PermissionsConfig(browser_url_allowlist=("docs.example.com",)))
    with denied("browser_url_allowlist"):
        await gate.check_page("https://example.com/")


# Words


def test_the_guide_says_what_the_profiles_are_and_its_sample_is_sound(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs/permissions.md").read_text(encoding="utf-8")
    (tmp_path / "config.toml").write_text(re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)[0])
    loaded = load_config(tmp_path / "config.toml", environ={})
    assert loaded.warnings == ()
    assert loaded.config.agents[0].permissions.effective.exec_allowlist == ("git", "python3", "pdftotext")
    words = {True: "yes", False: "no"}
    for line in re.findall(r"^\| `.*$", guide, re.MULTILINE):
        keys, *shown = (cell.strip() for cell in line.strip("|").split("|"))
        for key in re.findall(r"`(\w+)`", keys):
            for profile, cell in zip(Profile, shown[:3], strict=True):
                value = getattr(PROFILES[profile], key)
                if not isinstance(value, tuple):
                    assert cell.split(",")[0] == words.get(value, str(value)), (key, profile)
    default = re.search(r"^\| `exec_allowlist` \| \| (.*?) \|", guide, re.MULTILINE)
    assert default is not None
    assert tuple(default[1].split(", ")) == PROFILES[Profile.STANDARD].exec_allowlist


def warnings_of(folder: Path, text: str) -> str:
    (folder / "config.toml").write_text(text)
    return "\n".join(load_config(folder / "config.toml", environ={}).warnings)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("[agents.sandbox]\nmode = 'disabled'", "sandbox.mode = 'disabled' lets commands"),
        ("[agents.sandbox]\nmode = 'disabled'\n[agents.permissions]\nnetwork_outbound = false", "refuse to start"),
        ("[agents.sandbox]\nwritable_paths = ['/', '/srv/x']", "writable_paths holds '/'"),
        ("[agents.permissions]\nfile_read = ['/**/*.md']", "see everything below /"),
        ("[agents.permissions]\nfile_read = ['notes/*']", "no absolute path"),
        ("[agents.permissions]\nfile_read = 'deny'", "hides the workspace from commands"),
        ("[agents.permissions]\nnetwork_allow_private = true", "list the hosts"),
        ("[agents.permissions]\nfile_write = 'allow'", "replace the very programs"),
        ("[agents.permissions]\nprofile = 'trusted'\n[messaging.telegram]\ntoken = '1:a'", "anybody may write to it"),
        (
            "[agents.permissions]\nprofile = 'trusted'\n[messaging.telegram]\ntoken = '1:a'\ndm_allowed_users = ['7']",
            "",
        ),
        ("[agents.permissions]\nprofile = 'trusted'", ""),
        ("[agents.permissions]\nprofile = 'restricted'\n[messaging.telegram]\ntoken = '1:a'", ""),
    ],
)
def test_the_configuration_is_checked_for_what_is_likely_not_meant(table: str, expected: str, tmp_path: Path) -> None:
    said = warnings_of(tmp_path, f"[[agents]]\nid = 'main'\n{table}\n")
    assert expected in said
    assert bool(said) is bool(expected)


@pytest.mark.parametrize(
    ("table", "sandbox", "is_contained", "expected"),
    [
        ({}, {}, True, "profile standard"),
        ({"profile": "trusted", "browser": False}, {}, True, "profile trusted with browser = false"),
        ({}, {}, False, "profile standard; commands are NOT contained, they run with all rights"),
        ({"profile": "restricted"}, {}, False, "profile restricted"),
        ({}, {"mode": "disabled"}, True, "profile standard; NOT contained, the sandbox is switched off"),
        ({"exec_allowlist": ["jq"]}, {}, True, "profile standard with exec_allowlist = [jq]"),
    ],
)
def test_a_status_says_what_holds_and_what_does_not(
    table: dict[str, object], sandbox: dict[str, object], is_contained: bool, expected: str
) -> None:
    config = AgentConfig.model_validate({"id": "main", "permissions": table, "sandbox": sandbox})
    words = words_of(config, is_contained=is_contained)
    assert words.startswith(expected)
    assert ("NOT" in words) is ("NOT" in expected)


async def test_a_worker_is_told_what_is_true_for_its_profile(tmp_path: Path, contained: Backend) -> None:
    owner = Owner(tmp_path, contained)
    standard = owner.containment.describe()
    assert "exec starts only these programs: git, cargo, npm, node, python3, curl, jq." in standard
    assert "the network is open" in standard
    assert "Denied to you by the owner: browser_js_eval;" in standard
    owner.permit(profile="trusted")
    trusted = owner.containment.describe()
    assert "They may write: / (except below " in trusted
    assert "exec starts only" not in trusted
    assert "Denied" not in trusted
    assert f"Out of bounds is {owner.root}," in trusted
    owner.permit(file_read=[f"{owner.notes}/*.md"])
    assert f"Beside the workspace it reads only what fits {owner.notes}/*.md." in owner.containment.describe()
    owner.permit(profile="restricted", shell="workspace")
    restricted = owner.containment.describe()
    assert "the network is closed" in restricted
    assert "The file tool writes nothing" in restricted
    assert str(owner.workspace) not in restricted
    assert "file_read, file_write, exec, browser" in restricted
