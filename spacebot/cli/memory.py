"""`memory`: look at, change, export and import what an agent knows.

While the program runs, it is asked over the control socket; while it does not, this process opens the store itself,
under the instance's lock, so that two never do. Both doors lead to the same functions (`api/memory_control.py`), which
give the same answers.

Flow:    run_memory -> one function per command -> _Door -> answers -> lines for people, or JSON
Floor:   cli; standard library only until a store has to be opened
"""

import contextlib
import json
import os
import stat
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import Answer, LostDaemonError, NoDaemonError, ask, upload
from spacebot.cli.liveness import hold_instance
from spacebot.cli.memory_text import WIDTH, ProgressLine, details, found_by, headline, one_line, plain, wrapped

if TYPE_CHECKING:
    from spacebot.config.model import Config

SHOWN_LINES = 3  # of a memory in a list
COPY = 1 << 20  # bytes
MAKES = frozenset({"memory_add", "memory_import"})  # commands that may begin a store
TYPES = ("fact", "preference", "decision", "identity", "event", "observation", "goal", "todo")
MODES = ("hybrid", "recent", "important", "typed")
SORTS = ("recent", "importance", "most_accessed")
GO_ON = "what was imported stays; run the same command again to go on"


def add_memory_commands(memory: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of all memory commands.

    Args:
        memory: the parser of `memory` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = memory.add_subparsers(metavar="search|show|add|forget|import|export|stats|rebuild|maintain", required=True)

    def command(name: str, run: Callable[["_Door", Namespace], int], description: str) -> ArgumentParser:
        parser = add(name, description, group)
        parser.set_defaults(memory_command=run)
        parser.add_argument("--agent", metavar="ID", help="default: the default agent")
        parser.add_argument("--json", action="store_true", help="for programs")
        return parser

    search = command("search", _search, "Find memories by meaning, words and links.")
    search.add_argument("query", metavar="QUERY", nargs="*", help="what to look for; not needed with another mode")
    search.add_argument("--type", choices=TYPES, help="only of this type")
    search.add_argument("--limit", type=int, default=10, metavar="N", help="how many (default: 10)")
    search.add_argument("--mode", choices=MODES, default="hybrid", help="how to look (default: hybrid)")
    search.add_argument("--sort", choices=SORTS, help="order of mode typed (default: recent)")
    show = command("show", _show, "Show a memory with all that belongs to it.")
    show.add_argument("id", metavar="ID", help="the id, or its beginning")
    new = command("add", _add, "Remember something.")
    new.add_argument("text", metavar="TEXT", nargs="+", help="what to remember; - reads it from standard input")
    new.add_argument("--type", choices=TYPES, default="fact", help="default: fact")
    new.add_argument("--importance", type=float, metavar="0..1", help="default: that of the type")
    new.add_argument("--permanent", action="store_true", help="never fades and is never merged away")
    new.add_argument("--user", metavar="PLATFORM:USER", help="the person whom it is about")
    forget = command("forget", _forget, "Hide a memory, or erase everything about a person.")
    forget.add_argument("id", metavar="ID", nargs="?", help="the id, or its beginning")
    forget.add_argument("--reason", metavar="TEXT", help="why, for the log of what was done")
    forget.add_argument("--person", metavar="PLATFORM:USER", help="erase all there is of a person, for good")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    taken = command("import", _import, "Take in memories from a file of JSON lines; known ones are passed over.")
    taken.add_argument("file", metavar="FILE", help="- reads standard input")
    taken.add_argument("--dry-run", action="store_true", help="only look whether the file is right")
    given = command("export", _export, "Write all memories as JSON lines, forgotten ones included.")
    given.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: standard output")
    given.add_argument("--private", action="store_true", help="also what was learned in direct chats")
    given.add_argument("--force", action="store_true", help="replace a file that exists")
    command("stats", _stats, "Show how much there is.")
    command("rebuild", _rebuild, "Make the vector table anew from the database.")
    care = command("maintain", _maintain, "Let memories fade, prune and merge them now.")
    care.add_argument("--dry-run", action="store_true", help="only show what it would do")


def run_memory(paths: InstancePaths, options: Namespace) -> int:
    """Run one memory command; returns the exit code. Errors: SpacebotError."""
    run: Callable[[_Door, Namespace], int] = options.memory_command
    return run(_Door(paths, options.agent, options.debug), options)


@dataclass(frozen=True, slots=True)
class _Door:
    """The way to an agent's memory, whether the program runs or not."""

    paths: InstancePaths
    agent: str | None
    debug: bool

    def ask(self, command: str, **fields: Any) -> Answer:
        """The one answer of a short command. Errors: SpacebotError."""
        answers: list[Answer] = []
        self.stream(command, answers.append, **fields)
        if not answers:
            raise LostDaemonError("the daemon closed the connection without an answer")
        answers[0].pop("result", None)
        return answers[0]

    def agents(self) -> list[str]:
        """All agents that have something to remember. Errors: SpacebotError."""
        try:
            return [str(name) for name in ask(self.paths, "status")["agents"]]
        except LostDaemonError:
            raise
        except NoDaemonError:
            config = self._config()
        known = [agent.id for agent in config.agents if self.paths.agent(agent.id).database.exists()]
        return known or [config.default_agent.id]

    def _config(self) -> "Config":
        from spacebot.cli.secret import open_secrets
        from spacebot.config.load import load_config  # heavy, and only needed here

        return load_config(self.paths.config, resolve_secret=open_secrets(self.paths).resolve).config

    def stream(
        self, command: str, take: Callable[[Answer], None], *, file: BinaryIO | None = None, **fields: Any
    ) -> None:
        """Give every answer to `take`. Errors: SpacebotError."""
        fields = {key: value for key, value in {"agent": self.agent, **fields}.items() if value is not None}
        try:
            with closing(upload(self.paths, command, file, **fields)) as answers:
                for answer in answers:
                    take(answer)
            return
        except LostDaemonError:
            raise
        except NoDaemonError:
            pass
        self._open(command, take, file, fields)

    def _open(
        self, command: str, take: Callable[[Answer], None], file: BinaryIO | None, fields: Mapping[str, Any]
    ) -> None:
        """Do it here, on the store itself."""
        config = self._config()
        wanted = self.agent or config.default_agent.id
        agent = next((agent for agent in config.agents if agent.id == wanted), None)
        if agent is None:
            known = ", ".join(agent.id for agent in config.agents)
            raise NotFoundError(f"there is no agent {wanted[:80]!r}; there are: {known}")
        folder = self.paths.agent(agent.id, agent.workspace)
        if command not in MAKES and not folder.database.exists():
            raise NotFoundError(f"agent {agent.id!r} has no memories yet in {self.paths.root}")
        self.paths.create()
        with hold_instance(self.paths, is_background=False):
            import trio

            from spacebot.agent.upkeep import maintenance_policy
            from spacebot.api.memory_control import run_on_closed
            from spacebot.base.telemetry import set_up_logging

            set_up_logging(self.paths.logs, debug=self.debug, console=False)

            async def send(result: str, **answer: Any) -> None:
                take({"result": result, **answer})

            with _one_interrupt():
                policy = maintenance_policy(agent.cortex)
                trio.run(run_on_closed, command, agent.id, folder, self.paths.logs, policy, fields, send, file)


def _search(door: _Door, options: Namespace) -> int:
    answer = door.ask(
        "memory_search",
        query=" ".join(options.query),
        mode=options.mode,
        memory_type=options.type,
        sort_by=options.sort,
        limit=options.limit,
    )
    for note in answer["notes"]:
        print(f"warning: {note}", file=sys.stderr)
    if options.json:
        _print_json(answer)
        return 0
    for memory in answer["memories"]:
        print(headline(f"{memory['rank']:3}", memory, ""))
        for line in wrapped(memory["content"], indent=5, lines=SHOWN_LINES):
            print(line)
        if reason := found_by(memory):
            print(f"     [{reason}]")
    if not answer["memories"]:
        print("nothing was found", file=sys.stderr)
    return 0


def _show(door: _Door, options: Namespace) -> int:
    answer = door.ask("memory_show", id=options.id)
    if options.json:
        _print_json(answer)
        return 0
    memory = answer["memory"]
    for name, value in details(memory):
        print(f"{name:11} {value}")
    print()
    for line in wrapped(memory["content"], indent=0):
        print(line)
    if answer["associations"]:
        print("\nconnected with")
    for edge in answer["associations"]:
        arrow = "->" if edge["is_outgoing"] else "<-"
        print(headline(f"  {arrow}", edge["other"], f"{edge['relation_type']} {edge['weight']:.2f}"))
        for line in wrapped(edge["other"]["content"], indent=5, lines=1):
            print(line)
    return 0


def _add(door: _Door, options: Namespace) -> int:
    text = sys.stdin.read() if options.text == ["-"] else " ".join(options.text)
    answer = door.ask(
        "memory_add",
        content=text,
        memory_type=options.type,
        importance=options.importance,
        permanent=options.permanent,
        person=options.user,
    )
    if options.json:
        _print_json(answer)
        return 0
    memory = answer["memory"]
    if not answer["is_new"]:
        print("these words are known already", file=sys.stderr)
    if not answer["is_embedded"]:
        print("found by its words only for now: the embedding model did not answer", file=sys.stderr)
    print(headline("", memory, f"{answer['associations']} associations").strip())
    return 0


def _forget(door: _Door, options: Namespace) -> int:
    if (options.id is None) == (options.person is None):
        raise RefusedError("name one memory (ID), or with --person PLATFORM:USER a person")
    if options.person is not None:
        return _forget_person(door, options)
    answer = door.ask("memory_forget", id=options.id, reason=options.reason)
    if options.json:
        _print_json(answer)
    else:
        memory = answer["memory"]
        print(f"forgot {memory['memory_type']} {memory['id']}: {one_line(memory['content'], 60)}")
    return 0


def _forget_person(door: _Door, options: Namespace) -> int:
    """Erase a person; from all agents unless one is named."""
    doors = [replace(door, agent=name) for name in ([door.agent] if door.agent else door.agents())]
    traces = _sum(one.ask("memory_person", person=options.person) for one in doors)
    if not options.yes:
        print(
            f"{plain(options.person)}: {traces['memories']} memories, {traces['messages']} messages in "
            f"{traces['conversations']} conversations alone and {traces['rooms']} rooms.\n"
            "They are erased for good, with the answers to them; no backup is made.",
            file=sys.stderr,
        )
        if not sys.stdin.isatty():
            raise RefusedError("this needs a yes: say --yes, or run it in a terminal")
        print("Type yes to erase them: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() != "yes":
            print("nothing was erased", file=sys.stderr)
            return 1
    done = _sum(one.ask("memory_forget_person", person=options.person) for one in doors)
    if options.json:
        _print_json({"person": options.person, "agents": [one.agent for one in doors], **done})
        return 0
    print(
        f"erased {done['memories']} memories, {done['messages']} messages, {done['replies']} replies, "
        f"{done['runs']} runs, {done['summaries']} summaries, {done['log_lines']} log lines"
    )
    if done["console_mentions"]:
        print(
            f"note: {done['console_mentions']} lines of your own console chat name this person and stay",
            file=sys.stderr,
        )
    return 0


def _sum(answers: Iterable[Answer]) -> dict[str, int]:
    """The numbers of several agents together."""
    total: Counter[str] = Counter()
    for answer in answers:
        total.update({key: value for key, value in answer.items() if isinstance(value, int)})
    return dict(total)


def _stats(door: _Door, options: Namespace) -> int:
    stats = door.ask("memory_stats")
    if options.json:
        _print_json(stats)
        return 0
    for kind, count in stats.pop("counts_by_type").items():
        print(f"{kind:14} {count:>9,}")
    print("-" * 24)
    problem = stats.pop("problem", None)
    for name, value in stats.items():
        print(f"{name.replace('_', ' '):14} {f'{value:,}' if isinstance(value, int) else value:>9}")
    if problem:
        print(f"problem: {problem}")
    return 0


def _run_long(door: _Door, command: str, *, go_on: str, file: BinaryIO | None = None, **fields: Any) -> Answer:
    """Show how far long work is; returns its report.

    Args:
        go_on: what to do when it was cut off.
    """
    report: Answer = {}
    with ProgressLine() as progress:

        def take(answer: Answer) -> None:
            if answer.pop("result") == "progress":
                progress.show(answer)
            else:
                report.update(answer)

        try:
            door.stream(command, take, file=file, **fields)
        except LostDaemonError as error:
            raise LostDaemonError(f"{error}; {go_on}") from error
        except KeyboardInterrupt:
            progress.clear()
            print(f"stopped; {go_on}", file=sys.stderr)
            raise
    if not report:
        raise LostDaemonError(f"the daemon ended before this was done; {go_on}")
    return report


def _rebuild(door: _Door, options: Namespace) -> int:
    state = _run_long(door, "memory_rebuild", go_on="nothing is lost; run the same command again")
    if options.json:
        _print_json(state)
    else:
        print(f"made the vector table anew: {state['rows']:,} memories")
    return 0


def _maintain(door: _Door, options: Namespace) -> int:
    go_on = "what was done stays; the next run goes on from there"
    report = _run_long(door, "memory_maintain", go_on=go_on, dry_run=options.dry_run)
    if options.json:
        _print_json(report)
        return 0
    if report["is_dry_run"]:
        print("this would be done:")
    for name in ("scored", "decayed", "raised", "reindexed", "pruned", "purged", "merged"):
        print(f"{name:10} {report[name]:>9,}")
    for memory in report["pruned_memories"]:
        print(f"  pruned {memory['id'][:8]}  {one_line(memory['preview'] or '(private)', WIDTH - 19)}")
    for memory in report["merged_memories"]:
        ids = f"{memory['absorbed_id'][:8]} into {memory['survivor_id'][:8]}"
        print(f"  merged {ids}  {one_line(memory['preview'] or '(private)', WIDTH - 33)}")
    if not report["is_complete"]:
        print("not complete: run it again to go on", file=sys.stderr)
    return 0


def _import(door: _Door, options: Namespace) -> int:
    with _input(options.file) as (file, size):
        report = _run_long(door, "memory_import", go_on=GO_ON, file=file, size=size, dry_run=options.dry_run)
    if options.json:
        _print_json(report)
    elif report["is_dry_run"]:
        print(f"the file is right: {report['memories']:,} memories, {report['associations']:,} associations")
    else:
        print(
            f"imported {report['memories']:,} memories and {report['associations']:,} associations; "
            f"{report['known']:,} memories were known"
        )
        if report["not_embedded"]:
            print(f"{report['not_embedded']:,} of them get their vectors later", file=sys.stderr)
    return 0


def _export(door: _Door, options: Namespace) -> int:
    counts: Answer = {}
    is_complete = False
    with _output(options.file, force=options.force) as write:

        def take(answer: Answer) -> None:
            nonlocal is_complete
            match answer.pop("result"):
                case "piece":
                    write(answer["text"].encode())
                case "end":
                    is_complete = True
                    counts.update(answer)

        door.stream("memory_export", take, private=options.private)
        if not is_complete:
            raise LostDaemonError("the daemon ended before the export was complete; try again")
    if options.json and options.file != "-":
        _print_json(counts)
    elif options.file != "-":
        print(
            f"wrote {counts['memories']:,} memories and {counts['associations']:,} associations to {options.file}",
            file=sys.stderr,
        )
    if counts["left_out"]:
        print(f"left out: {counts['left_out']:,} private memories; --private includes them", file=sys.stderr)
    return 0


@contextmanager
def _input(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file to read from its beginning, and its size; what cannot be measured is copied first."""
    from tempfile import TemporaryFile  # loads much, and every command loads this module

    try:
        with contextlib.ExitStack() as stack:
            file: BinaryIO = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or name == "-":
                copy = stack.enter_context(TemporaryFile())
                while chunk := file.read(COPY):
                    copy.write(chunk)
                copy.flush()
                file = copy
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            yield file, size
    except OSError as error:
        raise RefusedError(f"cannot read {name!r} ({error.strerror or error})") from error


@contextmanager
def _output(name: str, *, force: bool) -> Iterator[Callable[[bytes], object]]:
    """Where to write; a file appears under its name only once it is complete."""
    if name == "-":
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    target = Path(name)
    if target.exists() and not target.is_file():  # a pipe or a device is written to, never replaced
        try:
            with target.open("wb") as file:
                yield file.write
        except OSError as error:
            raise RefusedError(f"cannot write {name!r} ({error.strerror or error})") from error
        return
    if target.exists() and not force:
        raise RefusedError(f"{name!r} exists; --force replaces it")
    target = target.resolve()  # behind a link lies what is meant
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file.write
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise RefusedError(f"cannot write {name!r} ({error.strerror or error})") from error


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Ctrl-C as itself, wherever in the task tree it struck."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is None:
            raise KeyboardInterrupt from None
        raise


def _print_json(answer: Mapping[str, Any]) -> None:
    print(json.dumps({key: value for key, value in answer.items() if key != "result"}))
