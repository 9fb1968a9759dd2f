"""The command line: words in, the right command out.

Only what a command needs is imported, inside the command: `--version` loads nothing, commands that talk to the daemon
load the standard library alone.

Flow:    main -> argparse -> one function per command -> exit code
Floor:   cli
Source:  control spec 3.1: data to stdout, messages to stderr; 0 done, 1 failed, 2 wrong words, 130 interrupted
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from spacebot import __version__

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from spacebot.base.paths import InstancePaths
    from spacebot.cli.daemon import Program
    from spacebot.cli.serve import AppMain

INTERRUPTED = 130  # 128 + SIGINT, as shells expect

HELP = """\
Spacebot: an AI agent for teams that talks, thinks, works and remembers at the same time.

Usage: spacebot [OPTIONS] [COMMAND]

The program
  init                  the first steps: asks for a provider's key and a platform, tries them, writes the configuration
                        without questions: --provider ID --key-env NAME [--agent ID] --yes
  start [-f]            start in the background, or with -f in this terminal (the default command)
  stop [--force]        finish what is being said, then end; with --force end within seconds
  restart [-f]          stop and start again, after a look at the configuration
  status [--json]       is it running, since when, with which model, where is the web chat

Talking and looking
  chat [MESSAGE]        talk to an agent; with MESSAGE print the answer and end
                        --agent ID, --session NAME (default: terminal)
  top                   everything that runs now: select, c cancels, q quits
                        --once, --json, --cancel ID
  why [MESSAGE_ID]      what became of a message; without an id the latest ones [--json]
  logs [-n N] [-f]      the newest lines of the log; with -f go on

Agents (each with --json)
  agent list            every agent: does it run, with which model, what failed
  agent create ID       make one [--workspace FOLDER]; agent delete ID removes it, its files stay [--give-to ID]
  agent pause ID        keep what is said and begin nothing, until agent resume ID

Memory (while it runs or not; each with --json and --agent ID)
  memory search QUERY   what an agent knows, best first [--type T] [--limit N] [--mode hybrid|recent|important|typed]
  memory show ID        one memory with all that belongs to it; the beginning of an id is enough
  memory add TEXT       remember something [--type T] [--importance 0..1] [--permanent] [--user PLATFORM:USER]
  memory forget ID      hide a memory [--reason TEXT]; with --person PLATFORM:USER erase all there is of a person
  memory import FILE    take in JSON lines; run again, it goes on where it was [--dry-run]
  memory export [FILE]  write JSON lines [--private] [--force]
  memory stats          how much there is
  memory rebuild        make the search tables anew
  memory maintain       let fade, prune and merge now [--dry-run]

Skills (recipes for workers; a running program sees a change by itself; each with --agent ID or --instance)
  skill add SOURCE      install from owner/repo, owner/repo/skill, a folder ./path or a .skill file
                        --list shows what is there, --replace overwrites what came from elsewhere
  skill list            what is installed [--json]
  skill info NAME       where a skill comes from, whether it was changed, how it begins
  skill remove NAME     delete a skill
  skill search WORDS    look into the registry of public skills [--json]

Schedules (each with --json and --agent ID)
  cron list             every schedule: when it is due next, how the last run went
  cron add ID PROMPT    make one: --cron "0 9 * * 1-5" or --every SECONDS [--timezone NAME] [--to TARGET] [--once]
  cron run ID           run it now; also cron enable ID, cron disable ID, cron rm ID
  cron history [ID]     the newest runs and what came of them [-n N]

Workers (each with --json and --agent ID)
  worker list           those that live, then the newest that have ended: state, time, cost [-n N] [--state S]
  worker show ID        what one was told, did and came to; the beginning of an id is enough
  worker tell ID TEXT   hand a message to one that runs or waits
  worker cancel ID      end one and all that it has started

Models
  usage                 what models cost: by model, process, day; budgets of today [--days N] [--agent ID] [--json]
  models                the models of the configured providers and their prices [--provider P] [--refresh] [--json]
  route explain TEXT    which model would answer this, and why [--process P] [--task TYPE] [--agent ID] [--json]

MCP servers (tools of other programs for workers; each with --json)
  mcp list              every server and how its connection is
  mcp add NAME ...      NAME -- COMMAND ARGS [--env N=V], or NAME --url URL [--header N=V]
  mcp test NAME         connect now and print the tools; also mcp rm NAME, mcp reconnect NAME

Platforms
  messaging status      every connection: is it up, as whom, since when, the last problem [--json]
  messaging test NAME   ask a platform whether all is well; with TARGET TEXT send a message there [--json]

Keys (stored encrypted; the configuration names them as secret:NAME)
  secret set NAME       store a value, typed unseen or from standard input [--system|--tool: workers' commands get it]
  secret list           all names, never a value [--json]
  secret rm NAME        remove one
  secret rotate         encrypt everything with a new key [--passphrase|--key-file]
  secret unlock         give a running program the passphrase [--remember: the kernel's keyring keeps it]
  secret lock           take the passphrase out of the kernel's keyring

Providers of models (whether it runs or not)
  provider list         which there are and whether they can be used [--json]
  provider set ID       set one up: its key is asked for and tried [--key-env NAME] [--model ID/MODEL] [--keep-routes]
  provider test ID      ask it one word now [--model ID/MODEL]; also provider rm ID

Signing in (Anthropic's subscriptions; read the note on their terms that login shows)
  auth login            sign in with a browser anywhere [--console: an account that pays by use] [--no-browser]
  auth status           does the login count, until when [--json]; also auth refresh, auth logout

Files
  config check          read the configuration and say what is wrong with it
  config show [TABLE]   what counts and where each value comes from [--agent ID] [--all] [--json]
  config explain KEY    what a key means, what it may be, what it is now; config get KEY prints the value alone
  config set KEY VALUE  change the file, its comments stay; also config unset KEY, config edit [--agent ID]
  config schema         a JSON Schema of the file, for editors
  prompts reload        take over changed prompt and identity files now

Looking after it
  doctor                look at everything that tends to go wrong, and say the mend [--online] [--json]
  backup [FILE]         everything into one file, while it runs or not [--no-workspace] [--with-secrets]
  restore FILE          take a backup over; what is there is put aside [--force]
  service install       have systemd start and watch it; also service uninstall, service status
                        --user, --system, --dry-run

Options
  -c, --config PATH     configuration file; its folder holds everything else (default: ~/.spacebot/config.toml)
  -d, --debug           write more into the log
  --version             print the version
  -h, --help            print this, or with a command its options
"""


def _load_app() -> "AppMain":
    from spacebot.app import main as app_main

    return app_main


def _program_command() -> list[str]:
    from spacebot.base.paths import program_command

    return program_command()


def main(
    arguments: Sequence[str] | None = None,
    *,
    load_app: Callable[[], "AppMain"] = _load_app,
    command: Callable[[], Sequence[str]] = _program_command,
) -> int:
    """Run one command; returns the exit code.

    Args:
        arguments: the words after the program's name; None takes those of the process.
        load_app: imports what the daemon runs, in the daemon only.
        command: the words that start this program again.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["--version"], ["-V"]):
        print(f"spacebot {__version__}")
        return 0
    if words[:1] in (["--help"], ["-h"], ["help"]):
        print(HELP, end="")
        return 0
    if words[:1] == ["extract-document"]:  # hidden: the daemon reads PDF and HTML in a process of its own
        from spacebot.agent.documents import run_child

        return run_child(words[1:])
    if words[:1] == ["memory-child"]:  # the daemon's own helper process; see memory/probe.py
        from spacebot.memory.probe import main as memory_child

        return memory_child(words[1:])
    try:
        options = _parse(words)
        return _run(options, load_app, command)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # the prompt of the shell begins on a line of its own
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`| head`); nothing more can be said, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _run(options: "Namespace", load_app: Callable[[], "AppMain"], command: Callable[[], Sequence[str]]) -> int:
    from pathlib import Path

    from spacebot.base.errors import SpacebotError
    from spacebot.base.paths import InstancePaths
    from spacebot.cli.daemon import Program

    try:
        paths = InstancePaths.find(Path(options.config) if options.config else None)
        if options.config and not paths.config.exists():
            print(f"warning: {paths.config} does not exist; the environment alone decides", file=sys.stderr)
        if os.environ.get("SPACEBOT_DEPLOYMENT"):
            from spacebot.cli.deployment import read_token

            read_token(paths)
        run: Callable[[InstancePaths, Program, Namespace], int] = options.run
        code = run(paths, Program(load_app=load_app, command=command), options)
        sys.stdout.flush()
        return code
    except SpacebotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse(words: Sequence[str]) -> "Namespace":
    from argparse import Namespace

    # What stands behind `--` is another program's command line (`mcp add NAME -- COMMAND`), which argparse would
    # mix with ours. Other commands have it as before.
    end = words.index("--") if "--" in words and _is_mcp_add(words) else len(words)
    # Not by set_defaults: parent and command share these options, and the command's default would win.
    return _parser(words).parse_args(words[:end], Namespace(config=None, debug=False, behind=list(words[end + 1 :])))


def _is_mcp_add(words: Sequence[str]) -> bool:
    pairs = zip(("", *words), words, strict=False)
    plain = [word for before, word in pairs if not word.startswith("-") and before not in ("-c", "--config")]
    return plain[:2] == ["mcp", "add"]


def _parser(words: Sequence[str]) -> "ArgumentParser":
    from argparse import SUPPRESS, ArgumentParser

    from spacebot.cli.groups import add_groups

    class Parser(ArgumentParser):
        def format_help(self) -> str:
            return HELP if self.prog == "spacebot" else super().format_help()

    common = ArgumentParser(add_help=False, argument_default=SUPPRESS)  # may stand before or after the command
    common.add_argument("-c", "--config", metavar="PATH", help="configuration file")
    common.add_argument("-d", "--debug", action="store_true", help="write more into the log")
    parser = Parser(prog="spacebot", parents=[common])
    parser.set_defaults(run=_start, foreground=False)
    parser.add_argument("--version", action="version", version=f"spacebot {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, run: Callable[..., int], description: str, into: Any = commands) -> ArgumentParser:
        command: ArgumentParser = into.add_parser(name, parents=[common], description=description, help=description)
        command.set_defaults(run=run)
        return command

    command = add("init", _init, "First steps: a provider of models, an agent, a platform.")
    if "init" in words:
        from spacebot.cli.init import add_init_options

        add_init_options(command)
    for name, run in (("start", _start), ("restart", _restart)):
        command = add(name, run, f"{name.capitalize()} the program.")
        command.add_argument("-f", "--foreground", action="store_true", default=False, help="stay in this terminal")
    add("stop", _stop, "Stop the program.").add_argument("--force", action="store_true", help="end within seconds")
    add("status", _status, "Show whether it runs.").add_argument("--json", action="store_true", help="for programs")
    command = add("top", _top, "Show everything that runs now.")
    command.add_argument("--json", action="store_true", help="for programs; prints once")
    command.add_argument("--once", action="store_true", help="print once instead of refreshing")
    command.add_argument("--cancel", metavar="ID", help="cancel a process and everything below it")
    command = add("chat", _chat, "Talk to an agent.")
    command.add_argument("--agent", metavar="ID", help="default: the default agent")
    command.add_argument("--session", metavar="NAME", default="terminal", help="conversation (default: terminal)")
    command.add_argument("message", metavar="MESSAGE", nargs="*", help="say this, print the answer, end")
    command = add("why", _why, "Show what became of a message.")
    command.add_argument("message_id", metavar="MESSAGE_ID", nargs="?", help="default: list the latest messages")
    command.add_argument("--json", action="store_true", help="for programs")
    command = add("logs", _logs, "Show the newest lines of the log.")
    command.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="how many (default: 50)")
    command.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    command = add("usage", _usage, "What models cost.")
    command.add_argument("--days", metavar="N", type=int, default=30, help="how many, today included (default: 30)")
    command.add_argument("--agent", metavar="ID", help="of one agent only (default: all)")
    command.add_argument("--json", action="store_true", help="for programs")
    command = add("models", _models, "The models that can be asked.")
    command.add_argument("--provider", metavar="P", help="of one provider only")
    command.add_argument("--refresh", action="store_true", help="fetch the catalogue from models.dev first")
    command.add_argument("--json", action="store_true", help="for programs")
    command = add("doctor", _doctor, "Look at everything that tends to go wrong.")
    command.add_argument("--online", action="store_true", help="also ask providers and platforms; costs a few tokens")
    command.add_argument("--json", action="store_true", help="for programs")
    add_groups(add, words)
    group = add("prompts", _prompts_reload, "Prompt templates.").add_subparsers(metavar="reload", required=True)
    add("reload", _prompts_reload, "Take over changed prompt and identity files now.", group)
    return parser


def _start(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.daemon import start

    return start(paths, program, foreground=options.foreground, debug=options.debug)


def _init(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.init import run_init

    return run_init(paths, program, options)


def _stop(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.daemon import stop

    return stop(paths, force=options.force)


def _restart(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.daemon import restart

    return restart(paths, program, foreground=options.foreground, debug=options.debug)


def _status(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.show import show_status

    return show_status(paths, as_json=options.json)


def _top(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.top import cancel, show_live, show_once

    if options.cancel:
        return cancel(paths, options.cancel)
    if options.json or options.once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return show_once(paths, as_json=options.json)
    return show_live(paths)


def _chat(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.chat import chat

    return chat(paths, agent=options.agent, session=options.session, message=" ".join(options.message))


def _why(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.show import show_recent, show_why

    if options.message_id is None:
        return show_recent(paths, as_json=options.json)
    return show_why(paths, options.message_id, as_json=options.json)


def _logs(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.show import show_logs

    return show_logs(paths, lines=options.lines, follow=options.follow)


def _usage(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.usage import show_usage

    return show_usage(paths, options)


def _models(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.usage import show_models

    return show_models(paths, options)


def _doctor(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.doctor import run_doctor

    return run_doctor(paths, online=options.online, as_json=options.json)


def _prompts_reload(paths: "InstancePaths", program: "Program", options: "Namespace") -> int:
    from spacebot.cli.client import ask

    changed = ask(paths, "prompts_reload", timeout_s=60)["changed"]
    print("\n".join(changed) if changed else "nothing has changed", file=sys.stdout if changed else sys.stderr)
    return 0
