"""`skill`: install, list, look at, remove and search recipes for workers.

It works on the folders themselves, whether the program runs or not; a running one watches them and takes a change over.

Flow:    run_skill -> one function per command -> Installer, scan_skills, the registry -> lines for people, or JSON
Floor:   cli; standard library only until a command runs
Source:  tools spec 10.3 and 18; control spec 3.1
"""

import json
import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spacebot.base.errors import NotFoundError
from spacebot.base.paths import InstancePaths
from spacebot.cli.memory_text import one_line

if TYPE_CHECKING:
    from spacebot.base.fetch import Fetcher
    from spacebot.tools.skills import Skill

SHOWN = 500  # characters of a skill's text
_Result = TypeVar("_Result")


def add_skill_commands(skill: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the skill commands.

    Args:
        skill: the parser of `skill` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = skill.add_subparsers(metavar="add|list|info|remove|search", required=True)

    def command(
        name: str, run: Callable[[InstancePaths, Namespace], int], description: str, *, is_local: bool = True
    ) -> ArgumentParser:
        parser = add(name, description, group)
        parser.set_defaults(skill_command=run)
        if is_local:
            parser.add_argument("-a", "--agent", metavar="ID", help="whose skills; default: the default agent")
            parser.add_argument("-i", "--instance", action="store_true", help="the skills of all agents")
        return parser

    for name in ("add", "install"):
        new = command(name, _add, "Install skills from a repository, a folder or a .skill file.")
        new.add_argument("source", metavar="SOURCE", help="owner/repo, owner/repo/skill, ./folder or ./file.skill")
        new.add_argument("--list", action="store_true", help="show what is there and install nothing")
        new.add_argument(
            "--replace", action="store_true", help="overwrite also what came from elsewhere or was changed"
        )
    listed = command("list", _list, "Show what is installed.")
    listed.add_argument("--json", action="store_true", help="for programs")
    for name, run, description in (("info", _info, "Show one skill."), ("remove", _remove, "Delete a skill.")):
        command(name, run, description).add_argument("name", metavar="NAME", help="as `skill list` names it")
    search = command("search", _search, "Look into the registry of public skills.", is_local=False)
    search.add_argument("words", metavar="WORDS", nargs="+", help="what to look for")
    search.add_argument("--limit", type=int, default=20, metavar="N", help="how many (default: 20)")
    search.add_argument("--json", action="store_true", help="for programs")


def run_skill(paths: InstancePaths, options: Namespace) -> int:
    """Run one of the commands; returns the exit code. Errors: SpacebotError."""
    told = _Warnings(logging.WARNING)
    logging.getLogger("spacebot.tools").addHandler(told)
    try:
        code: int = options.skill_command(paths, options)
        return code
    finally:
        logging.getLogger("spacebot.tools").removeHandler(told)


class _Warnings(logging.Handler):
    """Says on standard error what the log of the program would hold: a skill that is left out, and why."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "kv", {})
        if "folder" in fields:  # a refused source is told by the command itself
            words = (record.getMessage(), str(fields["folder"]), str(fields.get("error", "")))
            print(f"warning: {one_line(': '.join(word for word in words if word), 500)}", file=sys.stderr)


def _agent_folder(paths: InstancePaths, agent_id: str | None) -> Path:
    """Where an agent's own skills lie. Errors: ConfigError, NotFoundError."""
    from spacebot.config.load import load_config

    config = load_config(paths.config).config
    agent = next((one for one in config.agents if one.id == agent_id), None if agent_id else config.default_agent)
    if agent is None:
        names = ", ".join(one.id for one in config.agents)
        raise NotFoundError(f"there is no agent {agent_id!r}; there are: {names}")
    return paths.agent(agent.id, agent.workspace).skills


def _target(paths: InstancePaths, options: Namespace) -> Path:
    return paths.skills if options.instance else _agent_folder(paths, options.agent)


def _skills(paths: InstancePaths, options: Namespace) -> "list[Skill]":
    """What an agent has, or with --instance what all have, by name; the agent's own come before the others."""
    from spacebot.tools.skills import scan_skills

    found = {skill.name.casefold(): skill for skill in scan_skills(paths.skills, "instance")}
    if not options.instance:
        own = scan_skills(_agent_folder(paths, options.agent), "workspace")
        found |= {skill.name.casefold(): skill for skill in own}
    return [found[name] for name in sorted(found)]


def _find(paths: InstancePaths, options: Namespace) -> "Skill":
    wanted, skills = options.name.casefold(), _skills(paths, options)
    found = [skill for skill in skills if skill.name.casefold() == wanted]
    found += [skill for skill in skills if skill.folder.name.casefold() == wanted]
    if not found:
        raise NotFoundError(f"there is no skill {options.name[:80]!r}; `spacebot skill list` shows what is installed")
    return found[0]


def _root(paths: InstancePaths, options: Namespace, skill: "Skill") -> Path:
    return paths.skills if skill.source == "instance" else _agent_folder(paths, options.agent)


def _with_fetcher(work: "Callable[[Fetcher], Awaitable[_Result]]") -> _Result:
    import trio

    from spacebot.base.fetch import open_fetcher

    async def run() -> _Result:
        async with open_fetcher() as fetcher:
            return await work(fetcher)

    return trio.run(run)


def _add(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.tools.skill_install import Installer
    from spacebot.tools.skill_sources import Addresses, fetch_and_install, install_path, parse_source

    source, target = parse_source(options.source), _target(paths, options)
    wishes = {"replace": options.replace, "only_list": options.list}
    if isinstance(source, Path):
        names = install_path(source, Installer(target), **wishes)
    else:
        names = _with_fetcher(
            lambda fetcher: fetch_and_install(source, Installer(target), fetcher, addresses=Addresses.of(), **wishes)
        )
    for name in names:
        print(name)
    if not options.list:
        print(f"installed in {target}", file=sys.stderr)
        print("workers follow what stands there; read it as you would a program from the same author", file=sys.stderr)
    return 0


def _list(paths: InstancePaths, options: Namespace) -> int:
    skills = _skills(paths, options)
    if options.json:
        print(json.dumps({"skills": [_described(paths, options, skill) for skill in skills]}, ensure_ascii=False))
        return 0
    width = max((len(skill.name) for skill in skills), default=0)
    for skill in skills:
        print(f"{skill.name:{width}}  {skill.source:9}  {one_line(skill.description, 100)}".rstrip())
    if not skills:
        print("no skills are installed; spacebot skill add owner/repo", file=sys.stderr)
    return 0


def _described(paths: InstancePaths, options: Namespace, skill: "Skill") -> dict[str, Any]:
    from spacebot.tools.skill_install import Installer, described

    root = _root(paths, options, skill)
    return described(skill, root, Installer(root).records())


def _info(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.tools.skills import linked_files, read_skill_file

    skill = _find(paths, options)
    shown = _described(paths, options, skill)
    for label in ("name", "description", "source", "from", "installed_at", "state", "file_path"):
        if shown[label]:
            print(f"{label.replace('_', ' ') + ':':14}{one_line(str(shown[label]), 1000)}")
    if files := linked_files(skill.folder):
        print(f"{'files:':14}{one_line(', '.join(files), 1000)}")
    body = read_skill_file(skill.folder).body
    text = "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in body[:SHOWN])
    print(f"\n{text}{'…' if len(body) > SHOWN else ''}")
    return 0


def _remove(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.base.errors import RefusedError
    from spacebot.tools.skill_install import Installer

    skill = _find(paths, options)
    if skill.source == "instance" and not options.instance:
        raise RefusedError(f"{skill.name!r} belongs to all agents; add --instance to remove it")
    Installer(_root(paths, options, skill)).remove(skill.folder)
    print(f"removed {skill.folder}", file=sys.stderr)
    return 0


def _search(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.tools.skill_sources import Addresses, search_registry

    ask = partial(search_registry, " ".join(options.words), addresses=Addresses.of(), limit=options.limit)
    listing = _with_fetcher(lambda fetcher: ask(fetcher))
    if options.json:
        print(json.dumps({"skills": [one.to_json_object() for one in listing.skills]}, ensure_ascii=False))
        return 0
    for one in listing.skills:
        print(f"{one_line(one.source, 100)}/{one_line(one.skill_id, 64)}  {one.installs} installs")
    if not listing.skills:
        print("nothing was found", file=sys.stderr)
    return 0
