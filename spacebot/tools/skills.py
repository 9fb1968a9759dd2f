"""The skills that an agent has: found in two folders, listed for prompts, read when a worker wants one.

A skill is a folder with a `SKILL.md`. It may lie deeper; the folders between are categories. Links and hidden folders
are passed over, and everything is bounded, because anybody may have written what lies there.

Whom a skill may move: its words are its author's. The owner put it there, so a worker follows it as the way to do its
task, and nothing more: it changes neither the task nor what is allowed. Conversations see names and descriptions only,
marked as labels. Workers can read these folders and not write them, so that no page that a worker read can stay.

Flow:    folders -> scan_skills -> SkillShelf.index -> prompts;  read_skill -> SkillShelf.read -> text of the worker
Floor:   tools
Source:  tools spec 10.1, 10.2 and 23 (skills)
"""

import difflib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import trio
from pydantic import Field

from spacebot.base.errors import ToolError
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import cut_bytes, size_bytes
from spacebot.base.tree import Node
from spacebot.tools.contract import ToolArguments, ToolOutput
from spacebot.tools.skill_text import (
    BASE_VARIABLE,
    FOLDER_NAME,
    MAX_SKILL_FILE,
    SKILL_FILE,
    SkillError,
    SkillText,
    parse_skill,
)

log = logging.getLogger(__name__)

MAX_SKILLS = 500  # in one folder
MAX_FOLDERS = 5000  # that are looked into
MAX_LEVELS = 4
INDEX_SKILLS = 150  # named in a prompt
INDEX_DESCRIPTION = 160  # bytes
READ_CAP = 50_000  # bytes of a body that a worker sees
MAX_LINKED = 100  # files that are named with it
SKIPPED = frozenset({"node_modules", "__pycache__"})
SUPPORT = frozenset({"scripts", "references", "assets", "templates"})


@dataclass(frozen=True, slots=True)
class Skill:
    """One skill that can be used.

    Args:
        folder: where it lies, absolute.
        source: `instance` or `workspace`.
        category: the folders between, joined by slashes.
    """

    name: str
    description: str
    folder: Path
    source: str
    category: str = ""

    @property
    def file(self) -> Path:
        """Its `SKILL.md`."""
        return self.folder / SKILL_FILE


def scan_skills(root: Path, source: str) -> list[Skill]:
    """Find the skills below a folder, by path; broken ones are told in the log and left out. Blocking."""
    found: dict[str, Skill] = {}
    for folder in skill_folders(root):
        try:
            text = read_skill_file(folder)
        except SkillError as error:
            log.warning("skill left out", extra=kv(folder=str(folder), error=str(error)))
            continue
        category = folder.parent.relative_to(root).as_posix()
        skill = Skill(text.name or folder.name, text.description, folder, source, "" if category == "." else category)
        if (other := found.setdefault(skill.name.casefold(), skill)) is not skill:
            log.warning("skill left out", extra=kv(folder=str(folder), error=f"its name is that of {other.folder}"))
    return list(found.values())


def skill_folders(root: Path) -> Iterator[Path]:
    """Folders below `root` with a `SKILL.md`, in order; nothing below one of them. Blocking."""
    count = looked = 0
    waiting = [(root, 0)]
    while waiting:
        folder, level = waiting.pop()
        looked += 1
        if looked > MAX_FOLDERS or count >= MAX_SKILLS:
            log.warning("not all skills are looked at", extra=kv(folder=str(root)))
            return
        entries = _entries(folder)
        if level and any(entry.name == SKILL_FILE and entry.is_file(follow_symlinks=False) for entry in entries):
            count += 1
            yield folder
        elif level < MAX_LEVELS:
            names = sorted(
                (
                    entry.name
                    for entry in entries
                    if FOLDER_NAME.fullmatch(entry.name)
                    and entry.name not in SKIPPED
                    and entry.is_dir(follow_symlinks=False)
                ),
                reverse=True,
            )
            waiting += [(folder / name, level + 1) for name in names]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        if folder.is_symlink():
            return []
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []  # not there, or not for us


def read_skill_file(folder: Path) -> SkillText:
    """Read the `SKILL.md` of a folder. Blocking. Errors: SkillError."""
    try:
        # Not blocking: a named pipe must not hold the thread until somebody writes into it.
        descriptor = os.open(folder / SKILL_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SkillError(f"{SKILL_FILE} is no regular file")
            raw = file.read(MAX_SKILL_FILE + 1)
    except OSError as error:
        raise SkillError(f"{SKILL_FILE} cannot be read: {error.strerror}") from error
    return parse_skill(raw)


class SkillShelf:
    """The skills of one agent.

    Args:
        instance: folder for all agents.
        workspace: folder of this agent, whose skills come before those of the instance with the same name.
    """

    def __init__(self, instance: Path, workspace: Path) -> None:
        self._folders = ((instance, "instance"), (workspace, "workspace"))
        self._skills: dict[str, Skill] = {}

    @property
    def skills(self) -> Sequence[Skill]:
        """All of them, by name."""
        return sorted(self._skills.values(), key=lambda skill: skill.name.casefold())

    @property
    def folders(self) -> Sequence[Path]:
        """Where they are looked for: the instance's folder, then the agent's own."""
        return [folder for folder, _ in self._folders]

    async def reload(self) -> bool:
        """Look at the folders again; returns whether anything is different."""
        found: dict[str, Skill] = {}
        for folder, source in self._folders:
            skills = await trio.to_thread.run_sync(scan_skills, folder, source)
            found |= {skill.name.casefold(): skill for skill in skills}
        is_new = found != self._skills
        self._skills = found
        if is_new:
            log.info("skills reloaded", extra=kv(count=len(found)))
        return is_new

    def index(self) -> list[dict[str, str]]:
        """Names and short descriptions for a prompt, by name; at most `INDEX_SKILLS`."""
        return [
            {"name": _harmless(skill.name), "description": _harmless(_short(skill.description))}
            for skill in self.skills[:INDEX_SKILLS]
        ]

    def find(self, name: str) -> Skill:
        """The skill of a name, whatever its case, or of a folder's name.

        Errors: ToolError that names near ones.
        """
        wanted = name.strip().casefold()
        by_folder = {skill.folder.name.casefold(): skill for skill in self._skills.values()}
        skill = self._skills.get(wanted) or by_folder.get(wanted)
        if skill is None:
            names = [skill.name for skill in self.skills]
            near = difflib.get_close_matches(wanted[:100], [name.casefold() for name in names], n=3, cutoff=0.5)
            shown = ", ".join(self._skills[key].name for key in near) or ", ".join(names[:30]) or "none are installed"
            what = "near ones" if near else "there are"
            raise ToolError(f"there is no skill {name[:80]!r}; {what}: {shown}")
        return skill

    async def read(self, name: str) -> tuple[Skill, str]:
        """A skill and its instructions as they stand on disk now, with its own folder filled in.

        Errors: ToolError.
        """
        skill = self.find(name)
        text = await trio.to_thread.run_sync(read_skill_file, skill.folder)
        body = text.body.replace(BASE_VARIABLE, str(skill.folder))
        if size_bytes(body) > READ_CAP:
            body = f"{cut_bytes(body, READ_CAP)}\n[cut here; the file tool reads the rest of {skill.file}]"
        return skill, scrub(body)


def _short(description: str) -> str:
    if size_bytes(description) <= INDEX_DESCRIPTION:
        return description
    head = cut_bytes(description, INDEX_DESCRIPTION)
    return f"{(head.rsplit(' ', 1)[0] if ' ' in head else head).rstrip()}…"


def _harmless(text: str) -> str:
    """A label that cannot close the block it stands in."""
    return scrub(text.replace("<", "‹").replace(">", "›"))


def linked_files(folder: Path) -> list[str]:
    """Files that come with a skill, relative to its folder; links are passed over. Blocking."""
    found: list[str] = []
    waiting = [folder]
    looked = 0
    while waiting and len(found) < MAX_LINKED and looked < MAX_FOLDERS:
        current = waiting.pop()
        looked += 1
        for entry in sorted(_entries(current), key=lambda entry: entry.name):
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".") and entry.name not in SKIPPED:
                    waiting.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False) and entry.name.isprintable():
                    found.append(Path(entry.path).relative_to(folder).as_posix())
    return sorted(name for name in found if name != SKILL_FILE)[:MAX_LINKED]


class ReadSkillArguments(ToolArguments):
    """Which skill."""

    name: str = Field(description="as the list names it", min_length=1, max_length=200)


class ReadSkill:
    """Hands a worker the instructions of a skill."""

    name: ClassVar[str] = "read_skill"
    arguments: ClassVar[type[ToolArguments]] = ReadSkillArguments

    def __init__(self, shelf: SkillShelf) -> None:
        self._shelf = shelf

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        """Read it. Errors: ToolError."""
        skill, body = await self._shelf.read(arguments.name)
        files = await trio.to_thread.run_sync(linked_files, skill.folder)
        log.info("skill read", extra=kv(skill=skill.name, source=skill.source, process=node.id))
        return ToolOutput.of(name=skill.name, folder=str(skill.folder), content=body, linked_files=files or None)
