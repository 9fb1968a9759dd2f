"""The file tool on a real disk."""

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from spacebot.base.errors import ToolError
from spacebot.base.redaction import MASK, register_secret
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.model import SandboxConfig
from spacebot.tools.contract import RESULT_CAP, schema_of
from spacebot.tools.files import LIST_CAP, FileArguments, FileTool, with_digits
from spacebot.tools.paths_policy import open_file, write_file
from spacebot.tools.sandbox import Backend, BackendKind, Containment, probe_backend


class Desk:
    """A workspace with a file tool; a folder `outside` lies beside it."""

    def __init__(self, tmp_path: Path, *, mode: str = "enabled", backend: Backend | None = None) -> None:
        root = tmp_path / "inst"
        for folder in ("tools/bin", "agents/main/workspace/ingest", "agents/main/data", "agents/main/workspace-twin"):
            (root / folder).mkdir(parents=True)
        self.outside = tmp_path / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_text("outside text")
        config = SandboxConfig.model_validate({"mode": mode})
        self.containment = Containment(
            workspace=root / "agents/main/workspace",
            instance_root=root,
            data_dir=root / "agents/main/data",
            tools_bin=root / "tools/bin",
            settings=lambda: config,
            backend=backend,
        )
        self.workspace = self.containment.workspace

    async def __call__(self, operation: str, path: str = ".", **rest: object) -> str:
        arguments = FileArguments.model_validate({"operation": operation, "path": path, **rest})
        with trio.fail_after(30):
            output = await FileTool(containment=self.containment).call(arguments, Tree().add(NodeKind.WORKER, "test"))
        return output.text


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_what_was_written_is_read(desk: Desk) -> None:
    assert await desk("write", "a/b/ü.txt", content="eins\nzwei\n") == "created 'a/b/ü.txt', 10 bytes"
    assert await desk("read", "a/b/ü.txt") == "eins\nzwei\n"
    assert (await desk("write", str(desk.workspace / "a/b/ü.txt"), content="")).startswith("replaced")
    assert await desk("read", "a/b/ü.txt") == "(empty file)"


ESCAPES = [
    "../outside/secret",
    "missing/../../outside/secret",
    "a/../../../x",
    "{outside}/secret",
    "/etc/passwd",
    "{workspace}-twin/x",
    "{workspace}/../data/spacebot.db",
    "{root}/config.toml",
    "link/secret",
    "file-link",
    "deep/link/secret",
    "nul\0",
]


@pytest.mark.parametrize("operation", ["read", "write", "edit", "list", "search"])
@pytest.mark.parametrize("path", ESCAPES)
async def test_no_way_leads_out_of_the_workspace(operation: str, path: str, desk: Desk) -> None:
    """Tools spec, acceptance 1."""
    (desk.workspace / "link").symlink_to(desk.outside)
    (desk.workspace / "file-link").symlink_to(desk.outside / "secret")
    (desk.workspace / "deep").mkdir()
    (desk.workspace / "deep/link").symlink_to(desk.outside)
    root = desk.workspace.parent.parent.parent
    target = path.format(outside=desk.outside, workspace=desk.workspace, root=root)
    with pytest.raises(ToolError):
        await desk(operation, target, content="new", old_string="outside", new_string="x", pattern="text")
    assert (desk.outside / "secret").read_text() == "outside text"
    assert sorted(os.listdir(desk.outside)) == ["secret"]


async def test_ingest_may_be_read_and_not_written(desk: Desk) -> None:
    (desk.workspace / "ingest/paper").write_text("words")
    assert await desk("read", "ingest/paper") == "words"
    for operation in ("write", "edit"):
        with pytest.raises(ToolError, match="read-only"):
            await desk(operation, "ingest/./paper", content="x", old_string="words", new_string="x")


async def test_a_folder_swapped_for_a_link_in_the_middle_leads_nowhere(desk: Desk) -> None:
    """The check and the use are one walk: whatever is swapped when, nothing outside is read or written."""
    (desk.workspace / "real").mkdir()
    (desk.workspace / "real/secret").write_text("inside text")
    (desk.workspace / "sub").symlink_to(desk.outside)
    stop = threading.Event()

    def swap() -> None:
        spare, sub, link = (desk.workspace / name for name in ("real", "sub", "kept-link"))
        while not stop.is_set():
            os.rename(sub, link)
            os.rename(spare, sub)
            os.rename(sub, spare)
            os.rename(link, sub)

    policy = desk.containment.policy()
    swapper = threading.Thread(target=swap)
    swapper.start()
    seen: set[str] = set()
    try:
        for number in range(400):
            with suppress(ToolError), open_file(policy.locate("sub/secret", writing=False)) as descriptor:
                seen.add(os.read(descriptor, 100).decode())
            with suppress(ToolError):
                write_file(policy.locate(f"sub/new{number}", writing=True), b"x", create_dirs=False)
    finally:
        stop.set()
        swapper.join()
    assert "outside text" not in seen
    assert sorted(os.listdir(desk.outside)) == ["secret"]


async def test_a_name_that_is_a_pipe_holds_nobody(desk: Desk) -> None:
    os.mkfifo(desk.workspace / "pipe")
    for operation in ("read", "edit", "write"):
        with pytest.raises(ToolError, match="regular"):
            await desk(operation, "pipe", content="x", old_string="a", new_string="b")


@pytest.mark.spec("C-85")
async def test_with_containment_off_every_path_is_reached_and_links_are_followed(tmp_path: Path) -> None:
    """The owner's switch holds for all tools alike."""
    desk = Desk(tmp_path, mode="disabled")
    (desk.workspace / "link").symlink_to(desk.outside)
    assert await desk("read", "link/secret") == "outside text"
    await desk("write", str(desk.outside / "new/file"), content="x")
    assert (desk.outside / "new/file").read_text() == "x"
    assert "secret" in await desk("list", "link")
    assert await desk("search", "link", pattern="side text") == "link/secret:1: outside text"


async def test_a_write_is_whole_or_not_at_all_and_keeps_the_mode(desk: Desk) -> None:
    script = desk.workspace / "run.sh"
    script.write_text("old")
    script.chmod(0o755)
    await desk("write", "run.sh", content="new")
    assert script.stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(desk.workspace)) == ["ingest", "run.sh"]
    script.chmod(0o444)
    with pytest.raises(ToolError, match="write-protected"):
        await desk("write", "run.sh", content="newer")


@pytest.mark.parametrize(
    ("operation", "path", "rest"),
    [
        ("read", "missing", {}),
        ("read", "ingest", {}),
        ("list", "missing", {}),
        ("write", "x/y", {"content": "x", "create_dirs": False}),
        ("write", "x", {}),
        ("write", "ingest", {"content": "x"}),
        ("write", ".", {"content": "x"}),
        ("search", ".", {}),
        ("search", ".", {"pattern": "a\nb"}),
        ("search", ".", {"glob": "a/*"}),
        ("search", ".", {"pattern": "(", "regex": True}),
        ("read", "x" * 300, {}),
    ],
)
async def test_a_call_that_cannot_work_says_what_to_do(
    operation: str, path: str, rest: dict[str, object], desk: Desk
) -> None:
    with pytest.raises(ToolError) as caught:
        await desk(operation, path, **rest)
    assert len(str(caught.value)) > 15


async def test_a_page_of_lines_is_numbered_and_names_the_next(desk: Desk) -> None:
    (desk.workspace / "f").write_text("".join(f"line {n}\n" for n in range(1, 11)))
    assert await desk("read", "f", offset=3, limit="2") == (
        "3\tline 3\n4\tline 4\n[… more lines follow; go on with offset 5 …]"
    )
    assert await desk("read", "f", offset=9) == "9\tline 9\n10\tline 10"
    assert await desk("read", "f", offset=11) == "(the file has 10 lines, none from line 11 on)"


async def test_a_large_file_is_cut_between_characters_with_a_way_on(desk: Desk) -> None:
    (desk.workspace / "big").write_text("ä€😀 a line\n" * 10_000)
    text = await desk("read", "big")
    assert len(text.encode()) <= RESULT_CAP
    assert "\N{REPLACEMENT CHARACTER}" not in text
    assert "left out" in text
    assert "offset" in text
    paged = await desk("read", "big", offset=1)
    assert len(paged.encode()) <= RESULT_CAP
    assert "go on with offset" in paged


async def test_a_giant_line_is_cut_and_the_next_one_found(desk: Desk) -> None:
    (desk.workspace / "giant").write_bytes(b"x" * 3_000_000 + b"\nsecond")
    lines = (await desk("read", "giant", offset=1)).split("\n")
    assert lines[0].endswith("[…]")
    assert len(lines[0]) < 3000
    assert lines[1] == "2\tsecond"


async def test_what_is_not_text_is_said(desk: Desk) -> None:
    (desk.workspace / "latin").write_bytes(b"caf\xe9\n")
    (desk.workspace / "image").write_bytes(b"\x89PNG\0\0")
    assert "not valid UTF-8" in await desk("read", "latin")
    assert "not valid UTF-8" in await desk("read", "latin", offset=1)
    assert await desk("read", "image") == "'image' is a binary file of 6 bytes; it cannot be shown as text."
    with pytest.raises(ToolError, match="UTF-8"):
        await desk("edit", "latin", old_string="c", new_string="d")


async def test_an_edit_needs_exactly_one_place_or_leave_to_change_all(desk: Desk) -> None:
    (desk.workspace / "f").write_text("one two two")
    assert await desk("edit", "f", old_string="one", new_string="1") == "1 replacement in 'f'"
    with pytest.raises(ToolError, match="2 times"):
        await desk("edit", "f", old_string="two", new_string="2")
    assert await desk("edit", "f", old_string="two", new_string="2", replace_all=True) == "2 replacements in 'f'"
    for old, new in (("absent", "x"), ("", "x"), ("1", "1"), ("1", None)):
        with pytest.raises(ToolError):
            await desk("edit", "f", old_string=old, new_string=new)
    assert (desk.workspace / "f").read_text() == "1 2 2"


async def test_an_edit_finds_lines_that_end_the_windows_way(desk: Desk) -> None:
    (desk.workspace / "f").write_bytes(b"a\r\nb\r\nc\r\n")
    await desk("edit", "f", old_string="a\nb", new_string="x\ny")
    assert (desk.workspace / "f").read_bytes() == b"x\r\ny\r\nc\r\n"


async def test_a_listing_is_sorted_before_it_is_cut(desk: Desk) -> None:
    for number in range(LIST_CAP + 20):
        (desk.workspace / f"f{number:04}").touch()
    (desk.workspace / "zz-folder").mkdir()
    (desk.workspace / "a-link").symlink_to("/etc")
    lines = (await desk("list")).split("\n")
    assert lines[:4] == ["ingest/", "zz-folder/", "a-link  (link)", "f0000  0"]
    assert lines[-1].startswith("[notice: 23 of 523")


@pytest.fixture(params=["contained", "bare"])
async def searching(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    backend = Backend()
    if request.param == "contained":
        backend = await probe_backend()
        if backend.kind is BackendKind.NONE:
            pytest.skip(f"no sandbox works here: {backend.note}")
    desk = Desk(tmp_path, backend=backend)
    (desk.workspace / "src").mkdir()
    (desk.workspace / "src/b.py").write_text("x = 1\ny = a.b\n")
    (desk.workspace / "a.py").write_text("y = axb 22\n")
    (desk.workspace / "c.txt").write_text("y = a.b\n")
    (desk.workspace / "out").symlink_to(desk.outside)
    (desk.workspace / "bin").write_bytes(b"\0a.b")
    return desk


async def test_a_search_finds_text_patterns_and_names(searching: Desk) -> None:
    assert await searching("search", pattern="a.b") == "c.txt:1: y = a.b\nsrc/b.py:2: y = a.b"
    assert await searching("search", pattern="a.b", glob="*.py") == "src/b.py:2: y = a.b"
    assert await searching("search", pattern=r"a.b \d\d", regex=True) == "a.py:1: y = axb 22"
    assert await searching("search", "src/b.py", pattern="x") == "src/b.py:1: x = 1"
    assert await searching("search", "src", pattern="-e") == "no match (binary files and .git are not searched)"
    assert await searching("search", glob="*.py") == "a.py\nsrc/b.py"
    assert await searching("search", pattern="outside") == "no match (binary files and .git are not searched)"
    assert await searching("search", glob="secret") == "no file name fits 'secret'"


async def test_a_search_with_too_many_hits_says_so(desk: Desk) -> None:
    for number in range(30):
        (desk.workspace / f"f{number}").write_text("hit\n" * 100)
    lines = (await desk("search", pattern="hit")).split("\n")
    assert len(lines) == 201
    assert "there are more" in lines[-1]


async def test_secrets_in_files_do_not_enter_history(desk: Desk) -> None:
    register_secret("configured-secret-value")
    (desk.workspace / ".env").write_text("KEY=configured-secret-value\n")
    assert await desk("read", ".env") == f"KEY={MASK}\n"
    assert await desk("read", ".env", offset=1) == f"1\tKEY={MASK}"
    assert await desk("search", pattern="KEY") == f".env:1: KEY={MASK}"


@pytest.mark.parametrize(
    ("pattern", "result"),
    [
        (r"\d+", "[[:digit:]]+"),
        (r"[\d.]+", "[[:digit:].]+"),
        (r"\\d", r"\\d"),
        (r"\D", "[^[:digit:]]"),
        (r"[]\d]", "[][:digit:]]"),
    ],
)
def test_digits_are_understood(pattern: str, result: str) -> None:
    assert with_digits(pattern) == result


def test_the_schema_is_a_plain_object() -> None:
    schema = schema_of(FileArguments)
    assert schema["type"] == "object"
    assert "$ref" not in str(schema)
