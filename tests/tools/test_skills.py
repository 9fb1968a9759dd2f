"""Skills as they are found, read, installed, replaced and removed; archives and registry over real connections."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.errors import BusyError, ExternalError, NotFoundError, RefusedError, SpacebotError, ToolError
from spacebot.base.fetch import Fetcher, open_fetcher
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.model import SandboxConfig
from spacebot.tools.sandbox import BackendKind, Containment, probe_backend
from spacebot.tools.shell import ShellArguments, ShellTool
from spacebot.tools.skill_install import LOCK_FILE, Installer, state_of
from spacebot.tools.skill_sources import (
    Addresses,
    Repository,
    browse_registry,
    fetch_and_install,
    install_path,
    parse_source,
    search_registry,
)
from spacebot.tools.skill_text import SkillError, parse_skill
from spacebot.tools.skills import READ_CAP, ReadSkill, ReadSkillArguments, SkillShelf, scan_skills
from tests.stand_ins.skill_hub import Hub, archive, open_hub, skill_text

OPENCLAW = """\
---
name: nano-pdf
description: Edit PDFs with natural-language instructions using the nano-pdf CLI.
homepage: https://pypi.org/project/nano-pdf/
metadata:
  {
    "openclaw":
      {
        "emoji": "📄",
        "requires": { "bins": ["nano-pdf"] },
        "install":
          [
            { "id": "uv", "kind": "uv", "package": "nano-pdf", "bins": ["nano-pdf"], "label": "Install (uv)" },
          ],
      },
  }
user-invocable: true
---

# nano-pdf

Run `{baseDir}/scripts/edit.sh deck.pdf 1 "Change the title"`.
"""
HEADERS = {
    "folded": (
        "name: a\ndescription: >\n  First line\n  second line.\n\nversion: 1.0",
        ("a", "First line second line."),
    ),
    "literal": ("description: |\n  First\n  second\nname: a", ("a", "First second")),
    "nested name": ("metadata:\n  name: inner\n  description: inner\nname: outer\ndescription: d", ("outer", "d")),
    "quoted": ("name: 'a b'\ndescription: \"x: y\"", ("a b", "x: y")),
    "not YAML": ("name: a\ndescription: Use when: it rains\nallowed-tools: Bash(*)", ("a", "Use when: it rains")),
    "not YAML, quoted": ('name: "a"\ndescription: "d" and: more\nmetadata:\n  name: inner', ("a", '"d" and: more')),
    "tabs": ("name: a\ndescription: d\nx:\n\t- y", ("a", "d")),
    "words that look like values": ("name: no\ndescription: 2024-13-99", ("no", "2024-13-99")),
    "not latin": ("name: Übung\ndescription: 日本語のスキル", ("Übung", "日本語のスキル")),
    "a name that is a path": ("name: ../../etc\ndescription: d", (None, "d")),
    "a name with a line break": ('name: "a\\nb"\ndescription: d', ("a b", "d")),
    "a list as a name": ("name: [a, b]\ndescription: {x: y}", (None, "")),
    "unknown tags": ("name: !!binary aGk\ndescription: !thing d", ("aGk", "d")),
    "empty": ("", (None, "")),
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", HEADERS)
def test_headers_in_the_wild(kind: str, newline: str) -> None:
    header, expected = HEADERS[kind]
    found = parse_skill(f"---\n{header}\n---\n\nBody\n---\nmore".replace("\n", newline).encode())

    assert (found.name, found.description) == expected
    assert found.body == "Body\n---\nmore"


def test_blanks_a_mark_and_no_header() -> None:
    assert parse_skill(b"\xef\xbb\xbf\n\n---\ndescription: d\n--- \nx").description == "d"
    assert parse_skill(b"# Title\n---\nx").body == "# Title\n---\nx"
    assert parse_skill(OPENCLAW.encode()).name == "nano-pdf"
    with pytest.raises(SkillError, match="line 3"):
        parse_skill(b"---\nname: a\nx: [\n---\nbody")


def put(root: Path, folder: str, text: str, **files: str) -> Path:
    target = root / folder
    target.mkdir(parents=True)
    (target / "SKILL.md").write_text(text)
    for name, content in files.items():
        (target / name).write_text(content)
    return target


async def test_a_shelf_of_two_folders(tmp_path: Path) -> None:
    """The workspace's comes before the instance's; categories, broken ones, links and hidden ones."""
    instance, workspace = tmp_path / "instance", tmp_path / "workspace"
    put(instance, "pdf", skill_text("pdf", "everybody's"))
    put(instance, "office/Word", skill_text("word", "x" * 200))
    put(instance, "pdf/inner", skill_text("inner"))
    put(instance, ".hidden", skill_text("hidden"))
    put(instance, "broken", "---\nname: broken")
    put(instance, "twin", skill_text("PDF", "a namesake"))
    put(instance, "a/b/c/d", skill_text("deep"))
    put(instance, "a/b/c/e/f", skill_text("deeper"))
    put(tmp_path, "outside", skill_text("outside"))
    (instance / "link").symlink_to(tmp_path / "outside")
    put(workspace, "own-pdf", skill_text("Pdf", "<b>mine</b>\x07 </skills>"))
    put(workspace, "bare", "Just words.")

    shelf = SkillShelf(instance, workspace)

    assert await shelf.reload()
    assert not await shelf.reload()
    assert [(skill.name, skill.source, skill.category) for skill in shelf.skills] == [
        ("bare", "workspace", ""),
        ("deep", "instance", "a/b/c"),
        ("Pdf", "workspace", ""),
        ("word", "instance", "office"),
    ]
    index = {entry["name"]: entry["description"] for entry in shelf.index()}
    assert index["Pdf"] == "‹b›mine‹/b› ‹/skills›"
    assert len(index["word"].encode()) < 170
    assert shelf.find("own-PDF").name == "Pdf"
    with pytest.raises(ToolError, match="near ones: word"):
        shelf.find("words")
    (workspace / "own-pdf" / "SKILL.md").unlink()
    assert await shelf.reload()
    assert shelf.find("pdf").description == "everybody's"


async def test_a_worker_reads_a_skill_as_it_is_now(tmp_path: Path) -> None:
    folder = put(tmp_path, "nano-pdf", OPENCLAW, **{"notes.txt": "x"})
    (folder / "scripts").mkdir()
    (folder / "scripts/edit.sh").write_text("#!/bin/sh")
    (folder / "scripts/away").symlink_to("/etc/passwd")
    shelf = SkillShelf(tmp_path, tmp_path / "none")
    await shelf.reload()
    node = Tree().add(NodeKind.WORKER, "test")

    async def read() -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            (await ReadSkill(shelf).call(ReadSkillArguments(name="NANO-PDF"), node)).text
        )
        return answer

    found = await read()
    assert found["name"] == "nano-pdf"
    assert found["content"].endswith(f'Run `{folder}/scripts/edit.sh deck.pdf 1 "Change the title"`.')
    assert found["linked_files"] == ["notes.txt", "scripts/edit.sh"]
    (folder / "SKILL.md").write_text(skill_text(body="é" * READ_CAP + "sk-ant-abcdefghijklmnopqrstuvwxyz"))
    assert "cut here" in (await read())["content"]
    (folder / "SKILL.md").write_text(skill_text(body="Key: sk-ant-abcdefghijklmnopqrstuvwxyz"))
    assert (await read())["content"] == "Key: [secret removed]"
    (folder / "SKILL.md").unlink()
    (folder / "SKILL.md").symlink_to("/etc/passwd")
    with pytest.raises(ToolError, match="cannot be read"):
        await read()


async def test_a_command_runs_what_a_skill_brings_and_changes_none(tmp_path: Path) -> None:
    """In the sandbox of this machine; also when the folder is missing, and when it is moved away first."""
    backend = await probe_backend()
    if backend.kind is BackendKind.NONE:
        pytest.skip(f"no sandbox works here: {backend.note}")
    root, workspace = tmp_path / "inst", tmp_path / "inst/agents/main/workspace"
    for folder in ("tools/bin", "agents/main/data", "agents/main/workspace"):
        (root / folder).mkdir(parents=True)
    (root / "config.toml").write_text("hidden")
    script = put(root / "skills", "pdf", skill_text(), **{"run.sh": "echo from the skill"}) / "run.sh"
    containment = Containment(
        workspace=workspace, instance_root=root, data_dir=root / "agents/main/data", tools_bin=root / "tools/bin",
        skills=(root / "skills", workspace / "skills"), settings=SandboxConfig, backend=backend,
    )  # fmt: skip
    node = Tree().add(NodeKind.WORKER, "test")

    async def shell(command: str) -> str:
        return (await ShellTool(containment=containment).call(ShellArguments(command=command), node)).text

    assert "from the skill" in await shell(f"sh {script}")
    said = await shell(
        f"echo evil > {script}; mkdir -p skills/evil; echo evil > skills/evil/SKILL.md; rm -rf skills; mv skills other;"
        f" ln -s /tmp skills; rm {script}; cat {root}/config.toml; ls {root}"
    )
    assert "hidden" not in said
    assert script.read_text() == "echo from the skill"
    assert list((workspace / "skills").iterdir()) == []
    assert "skills" in containment.describe()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("vercel-labs/agent-skills", Repository("vercel-labs", "agent-skills")),
        (" anthropics/skills/pdf/ ", Repository("anthropics", "skills", "pdf")),
        ("anthropics/skills@pdf", Repository("anthropics", "skills", "pdf")),
        ("a/b/skills/x.y", Repository("a", "b", "skills/x.y")),
        ("https://github.com/a/b.git", Repository("a", "b")),
        ("https://github.com/a/b/tree/main/skills/pdf", Repository("a", "b", "skills/pdf")),
        ("./here", Path("./here")),
    ],
)
def test_sources(spec: str, expected: object) -> None:
    assert parse_source(spec) == expected


@pytest.mark.parametrize(
    "spec",
    ["", "pdf", "a/", "/".join("a" * 3) + "/../..", "a/..", "a/b/../c", "-a/b", "a/b?x", "a/b#c", "a b/c", "a/b/c d",
     "https://evil.example/a/b", "http://github.com/a/b", "https://github.com@evil/a/b", "a/b/%2e%2e", "a\n/b",
     "./x\0y", "git@github.com:a/b", "file:///etc"],
)  # fmt: skip
def test_sources_that_are_none(spec: str) -> None:
    with pytest.raises(RefusedError):
        parse_source(spec)


@asynccontextmanager
async def hub_and_fetcher() -> AsyncIterator[tuple[Hub, Fetcher]]:
    async with open_hub() as hub, open_fetcher() as fetcher:
        yield hub, fetcher


REPOSITORY = {
    "README.md": "all my skills",
    "skills/pdf/SKILL.md": skill_text("pdf"),
    "skills/pdf/scripts/run.sh*": "#!/bin/sh\n",
    "skills/Word Documents/SKILL.md": skill_text("word"),
    "skills/pdf/examples/SKILL.md": "an example inside of a skill",
}


async def test_a_repository_is_installed_whole_or_in_part(tmp_path: Path) -> None:
    async with hub_and_fetcher() as (hub, fetcher):
        hub.repositories["me/mine"] = archive(REPOSITORY)

        async def add(spec: str, **wishes: bool) -> list[str]:
            source = parse_source(spec)
            assert isinstance(source, Repository)
            return await fetch_and_install(
                source, Installer(tmp_path / "skills"), fetcher, addresses=hub.addresses, **wishes
            )

        assert await add("me/mine", only_list=True) == ["Word-Documents", "pdf"]
        assert not (tmp_path / "skills").exists()
        assert await add("me/mine/pdf") == ["pdf"]
        assert await add("me/mine/skills/pdf") == ["pdf"]  # again, from the same repository
        assert await add("me/mine") == ["Word-Documents", "pdf"]
        folder = tmp_path / "skills/pdf"
        assert (folder / "examples/SKILL.md").is_file()
        assert (folder / "scripts/run.sh").stat().st_mode & 0o777 == 0o755
        assert (folder / "SKILL.md").stat().st_mode & 0o777 == 0o644
        assert await add("me/mine/skills/pdf/examples", only_list=True) == ["examples"]
        assert hub.asked == ["/me/mine/zip/HEAD"] * 5
        with pytest.raises(NotFoundError, match="there are: Word Documents, examples, pdf"):
            await add("me/mine/excel")
        hub.repositories["me/odd"] = archive(
            {"tests/aux:1.c": "", "tests/AUX:1.c": "", "p2/SKILL.md": skill_text("p2")}
        )
        assert await add("me/odd") == ["p2"]  # odd names elsewhere in a repository are nobody's business
        with pytest.raises(NotFoundError, match="no public repository you/yours"):
            await add("you/yours")
        hub.repositories["you/root"] = archive({"SKILL.md": skill_text("calendar")}, top="root-1234/")
        assert await add("you/root") == ["root"]
        hub.repositories["you/evil"] = archive({"pdf/SKILL.md": skill_text("pdf", "another")})
        with pytest.raises(RefusedError, match="is installed from 'me/mine', not 'you/evil'"):
            await add("you/evil")
        assert await add("you/evil", replace=True) == ["pdf"]
    assert sorted(skill.name for skill in scan_skills(tmp_path / "skills", "x")) == ["calendar", "p2", "pdf", "word"]


@pytest.mark.spec("C-71")
def test_the_lock_file_knows_what_was_changed(tmp_path: Path) -> None:
    source = put(tmp_path / "mine", "pdf", skill_text("pdf"), **{"a.txt": "1"})
    root = tmp_path / "skills"
    installer = Installer(root)
    install_path(source, installer)
    assert state_of(root / "pdf", installer.records()["pdf"]) == "installed"

    (root / "pdf/a.txt").write_text("2")

    assert state_of(root / "pdf", installer.records()["pdf"]) == "changed"
    with pytest.raises(RefusedError, match="was changed since"):
        install_path(source, installer)
    assert (root / "pdf/a.txt").read_text() == "2"
    assert install_path(source, installer, replace=True) == ["pdf"]
    assert (root / "pdf/a.txt").read_text() == "1"
    put(root, "hand-made", skill_text("hand-made"))
    with pytest.raises(RefusedError, match="put there by hand"):
        install_path(put(tmp_path / "other", "hand-made", skill_text("hand-made")), installer)
    installer.remove(root / "pdf")
    assert sorted(path.name for path in root.iterdir()) == ["hand-made", LOCK_FILE]
    assert installer.records() == {}


def test_two_at_once_and_what_a_killed_one_left(tmp_path: Path) -> None:
    source, root = put(tmp_path / "mine", "pdf", skill_text("pdf")), tmp_path / "skills"
    (root / ".staging-dead").mkdir(parents=True)
    (root / ".staging-dead" / "old pdf").mkdir()
    (root / ".staging-dead.json").write_text("half")
    installer = Installer(root)

    with installer._locked(), pytest.raises(BusyError):
        install_path(source, Installer(root))
    install_path(source, installer)

    assert sorted(path.name for path in root.iterdir()) == ["pdf", LOCK_FILE]


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b'{"skills": {"a": {}}}', b'{"skills": {"a": {"source": 1}}}', b"[" * 10_000]
)
def test_a_broken_lock_file_stops_the_installation(raw: bytes, tmp_path: Path) -> None:
    source, root = put(tmp_path / "mine", "pdf", skill_text("pdf")), tmp_path / "skills"
    root.mkdir()
    (root / LOCK_FILE).write_bytes(raw)

    with pytest.raises(RefusedError, match="mend it or move it away"):
        install_path(source, Installer(root))

    assert [path.name for path in root.iterdir()] == [LOCK_FILE]


def test_when_the_swap_fails_the_old_ones_are_back(tmp_path: Path) -> None:
    """A lock file that cannot be written: a folder stands in its place."""
    root, installer = tmp_path / "skills", Installer(tmp_path / "skills")
    old = put(tmp_path / "mine", "pdf", skill_text("pdf", "old"))
    install_path(old, installer)
    records = installer.records()
    (old / "SKILL.md").write_text(skill_text("pdf", "new"))
    (root / LOCK_FILE).unlink()
    (root / LOCK_FILE).mkdir()
    installer.records = lambda: records  # type: ignore[method-assign]  # as it was read a moment before

    with pytest.raises(RefusedError, match="cannot write"):
        install_path(old, installer)

    assert "old" in (root / "pdf/SKILL.md").read_text()
    assert sorted(path.name for path in root.iterdir()) == ["pdf", LOCK_FILE]


@pytest.mark.parametrize("outside", ["", "..", "../mine", "x/../../mine"])
def test_nothing_outside_is_removed(outside: str, tmp_path: Path) -> None:
    mine = put(tmp_path, "mine", skill_text())
    (tmp_path / "skills/x").mkdir(parents=True)
    with pytest.raises(RefusedError):
        Installer(tmp_path / "skills").remove(tmp_path / "skills" / outside)
    assert mine.is_dir()


async def test_the_registry(tmp_path: Path) -> None:
    async with hub_and_fetcher() as (hub, fetcher):
        hub.listed = [
            {"source": "me/mine", "skillId": "pdf", "name": "pdf\x1b[2J tools", "installs": 7, "id": "me/mine/pdf"},
            {"source": "https://evil", "skillId": "pdf", "name": "pdf", "installs": 9},
            {"source": "me/mine", "skillId": "x", "name": "pdf-x", "installs": "many"},
            {"name": "pdf of nobody"},
        ]
        listing = await search_registry(" pdf ", fetcher, addresses=hub.addresses, limit=1000)
        assert [one.to_json_object() for one in listing.skills] == [
            {"source": "me/mine", "skillId": "pdf", "name": "pdf [2J tools", "installs": 7, "id": "me/mine/pdf"},
            {"source": "me/mine", "skillId": "x", "name": "pdf-x", "installs": 0},
        ]
        assert (await browse_registry("newest", 0, fetcher, addresses=hub.addresses)).has_more
        assert not (await browse_registry("hot", 1, fetcher, addresses=hub.addresses)).has_more
        assert hub.asked == ["/api/search?q=pdf&limit=100", "/api/skills/all-time/0", "/api/skills/hot/1"]
        with pytest.raises(RefusedError, match="2 to 200"):
            await search_registry(" x ", fetcher, addresses=hub.addresses)
        for status, raw in (
            (500, b"{}"),
            (200, b"<html>"),
            (200, b'{"skills": 3}'),
            (200, b"[]"),
            (200, b"[" * 99_999),
        ):
            hub.status, hub.raw = status, raw
            with pytest.raises(ExternalError):
                await search_registry("pdf", fetcher, addresses=hub.addresses)


async def test_the_public_addresses_are_guarded(tmp_path: Path) -> None:
    """Only an address that the owner named may lie in this network."""
    assert Addresses.of({}) == Addresses()
    assert Addresses.of({"SPACEBOT_SKILLS_REGISTRY": " http://r/ "}).registry == "http://r"
    async with open_hub() as hub, open_fetcher() as fetcher:
        hub.repositories["me/mine"] = archive({"SKILL.md": "x" * 100})
        assert hub.server is not None
        with pytest.raises(SpacebotError):
            await fetcher.get(hub.server.url, max_bytes=10)
        with pytest.raises(RefusedError, match="larger than"):
            await fetcher.get(f"{hub.server.url}/me/mine/zip/HEAD", may_be_private=True, max_bytes=10)
