"""`config`: look at the configuration, ask what a key means, change it; the file keeps its comments and its order.

The commands work on the file itself, whether the program runs or not; a running one is told to take the change over.

Flow:    run_config -> load_config -> explain.py; change.py -> ConfigEditor -> control command `config_reload`
Floor:   cli; standard library only, until there is something to do
Source:  control spec 1.3, 1.10 and 1.11; process spec 18 (doctor-like words)
"""

import json
import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spacebot.base.errors import BusyError, ConfigError, NotFoundError, RefusedError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import NoDaemonError, ask
from spacebot.cli.secret import open_secrets

if TYPE_CHECKING:
    from spacebot.config.edit import ConfigEditor
    from spacebot.config.explain import EffectiveValue
    from spacebot.config.load import LoadedConfig
    from spacebot.config.schema import KeySpec

RELOAD_S = 60.0
WIDTH = 46  # columns of names in a list


def add_config_commands(config: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the configuration's commands.

    Args:
        config: the parser of `config` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = config.add_subparsers(metavar="check|show|explain|get|set|unset|edit|schema", required=True)
    add("check", "Read the file and say what is wrong with it.", group).set_defaults(config_command=_check)
    command = add("show", "Show every value that counts and where it comes from; secrets are masked.", group)
    command.set_defaults(config_command=_show)
    command.add_argument("table", metavar="TABLE", nargs="?", help="only what begins so, such as defaults.routing")
    command.add_argument("--agent", metavar="ID", help="default: the default agent")
    command.add_argument("--all", action="store_true", help="also what nobody has set")
    command.add_argument("--json", action="store_true", help="for programs; always everything")
    command = add("explain", "Say what a key means, what it may be and what it is now.", group)
    command.set_defaults(config_command=_explain)
    command.add_argument("key", metavar="KEY", help="such as defaults.routing.channel; the end of the name may do")
    command.add_argument("--agent", metavar="ID", help="default: the default agent")
    command.add_argument("--json", action="store_true", help="for programs")
    command = add("get", "Print one value as it counts now.", group)
    command.set_defaults(config_command=_get)
    command.add_argument("key", metavar="KEY")
    command.add_argument("--agent", metavar="ID", help="default: the default agent")
    command = add("set", "Set a key in the file.", group)
    command.set_defaults(config_command=_set)
    command.add_argument("key", metavar="KEY")
    command.add_argument("value", metavar="VALUE", help="TOML, or bare words where a text is wanted")
    command.add_argument("surplus", nargs="*", help=SUPPRESS)
    command.add_argument("--agent", metavar="ID", help="in this agent's table (default: [defaults])")
    command = add("unset", "Take a key out of the file, so that the level below counts.", group)
    command.set_defaults(config_command=_unset)
    command.add_argument("key", metavar="KEY")
    command.add_argument("--agent", metavar="ID", help="out of this agent's table (default: [defaults])")
    command = add("edit", "Open the file in $VISUAL or $EDITOR; it is checked before it counts.", group)
    command.set_defaults(config_command=_edit)
    command = add("schema", "Print the JSON Schema of the file, for editors.", group)
    command.set_defaults(config_command=_schema)


def run_config(paths: InstancePaths, options: Namespace) -> int:
    """Run one of the commands. Errors: SpacebotError, never with a secret."""
    run: Callable[[InstancePaths, Namespace], int] = options.config_command
    return run(paths, options)


def _check(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.cli.check import check_config

    return check_config(paths)


def _load(paths: InstancePaths, file: Path | None = None) -> "LoadedConfig":
    from spacebot.config.load import load_config

    return load_config(file or paths.config, resolve_secret=open_secrets(paths).resolve)


def _editor(paths: InstancePaths) -> "ConfigEditor":
    from spacebot.config.edit import ConfigEditor

    return ConfigEditor(paths.config, load=partial(_load, paths))


# Looking


def _show(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.config.explain import Origin, effective_values

    loaded = _load(paths)
    values = effective_values(loaded, os.environ, agent_id=options.agent)
    wanted = (options.table or "").strip("[]")
    values = [value for value in values if not wanted or f"{value.name}.".startswith((f"{wanted}.", f"{wanted}["))]
    if wanted and not values:
        raise NotFoundError(f"no key begins with {wanted[:80]!r}; `spacebot config show --all` lists them")
    agent = options.agent or loaded.config.default_agent.id
    if options.json:
        print(
            json.dumps({"file": str(paths.config), "agent": agent, "values": [one.to_json_object() for one in values]})
        )
        return 0
    others = [other.id for other in loaded.config.agents if other.id != agent]
    note = f" (others: {', '.join(others)}; see --agent)" if others else ""
    print(f"# {paths.config}{'' if loaded.content_hash else ' (does not exist)'}, agent {agent}{note}")
    header = ""
    for value in values:
        if not options.all and not wanted and value.origin is Origin.BUILT_IN:
            continue
        if (table := value.name.rpartition(".")[0]) != header:
            header = table
            print(f"\n[{table}]")
        print(f"{_assignment(value):{WIDTH}}  # {value.source}")
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _assignment(value: "EffectiveValue") -> str:
    from spacebot.config.change import shown

    return f"{value.spec.key} = {shown(value.value)}"


def _explain(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.config.explain import explain_key

    spec, values = explain_key(_load(paths), os.environ, options.key, agent_id=options.agent)
    if options.json:
        print(json.dumps([value.to_json_object() for value in values]))
        return 0
    print("\n".join(_explanation(spec, values)))
    return 0


def _explanation(spec: "KeySpec", values: "list[EffectiveValue]") -> list[str]:
    from spacebot.config.change import shown

    lines = [spec.name, f"  {spec.description}", ""]
    lines.append(f"  type:     {spec.kind}{' (required)' if spec.is_required else ''}")
    if spec.limits:
        lines.append(f"  range:    {spec.limits}")
    low, high = spec.form
    if low is not None and high is not None:
        lines.append(f"            {low:g} to {high:g} in the web app")
    elif low is not None:
        lines.append(f"            at least {low:g} in the web app")
    lines.append(f"  default:  {spec.default or '(none)'}")
    lines += [f"  now:      {shown(value.value)}  ({_place(value, spec)}{value.source})" for value in values]
    if not values:
        lines.append("  now:      (not set)")
    lines.append(f"  a change: {'counts from the next start on' if spec.at_restart else 'counts at once'}")
    if spec.is_inherited:
        lines.append("  an agent's own table may repeat it")
    return [*lines, "", "  example:", f"    {spec.header}", f"    {spec.example}"]


def _place(value: "EffectiveValue", spec: "KeySpec") -> str:
    return "" if value.name == spec.name else f"{value.name}, "


def _get(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.config.explain import explain_key

    _, values = explain_key(_load(paths), os.environ, options.key, agent_id=options.agent)
    for value in values:
        if value.value is not None:
            print(value.value if isinstance(value.value, str) else json.dumps(value.value, ensure_ascii=False))
    return 0 if any(value.value is not None for value in values) else 1


def _schema(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.config.schema import config_schema

    print(json.dumps(config_schema(), indent=2, ensure_ascii=False))
    return 0


# Changing


def _set(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.config.change import parse_value, place_of, setting, shown

    if options.surplus:
        raise RefusedError(f"put the value into quotes: spacebot config set {options.key} 'a value with blanks'")
    spec, place, agent_id = place_of(options.key, options.agent)
    value = parse_value(spec, options.value)
    change = setting({place: value}, agent_id=agent_id, is_inherited=spec.is_inherited)
    _editor(paths).change_tables(change)
    print(f"{'.'.join(place)} = {shown(value)} in {_table(spec, agent_id)}", file=sys.stderr)
    return _take_over(paths)


def _unset(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.config.change import place_of, unsetting

    spec, place, agent_id = place_of(options.key, options.agent)
    change = unsetting(place, spec.name, agent_id=agent_id, is_inherited=spec.is_inherited)
    _editor(paths).change_tables(change)
    print(f"{spec.key} is taken out of {_table(spec, agent_id)}", file=sys.stderr)
    return _take_over(paths)


def _table(spec: "KeySpec", agent_id: str | None) -> str:
    if agent_id is not None:
        return f"the table of agent {agent_id}"
    return "[defaults]" if spec.is_inherited else "the file"


def _edit(paths: InstancePaths, options: Namespace) -> int:
    editor, program = _editor(paths), _program()
    before = editor.text()
    paths.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = paths.root / f".{paths.config.stem}.{os.getpid()}.draft.toml"
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(before or "# Spacebot reads this file; `spacebot config explain KEY` says what a key means.\n")
    try:
        text = _edited(paths, program, draft)
        if text is None or text == before:
            print("nothing was changed", file=sys.stderr)
            return 0 if text == before else 1
        kept = editor.replace_text(text, before=before)
    except BusyError as error:
        saved = paths.root / f"{paths.config.stem}.mine.toml"
        draft.replace(saved)
        raise BusyError(f"{error}. What you wrote is in {saved}") from error
    finally:
        draft.unlink(missing_ok=True)
    print(f"saved{'' if kept is None else f'; the text before is in {kept}'}", file=sys.stderr)
    return _take_over(paths)


def _edited(paths: InstancePaths, program: list[str], draft: Path) -> str | None:
    """What comes out of the editor, once it is sound; None when the owner gives up."""
    import subprocess

    while True:
        try:
            code = subprocess.run([*program, str(draft)], check=False).returncode
        except OSError as error:
            raise RefusedError(f"{program[0]!r} cannot be started ({error.strerror}); set EDITOR") from error
        if code != 0:
            print(f"{program[0]} ended with {code}", file=sys.stderr)
            return None
        try:
            for warning in _load(paths, draft).warnings:
                print(f"warning: {warning.replace(str(draft), str(paths.config))}", file=sys.stderr)
            return draft.read_text(encoding="utf-8")
        except ConfigError as error:
            print(f"error: {str(error).replace(str(draft), str(paths.config))}", file=sys.stderr)
        if not sys.stdin.isatty() or input("edit again? [Y/n] ").strip().lower().startswith("n"):
            return None


def _program() -> list[str]:
    import shlex

    for variable in ("VISUAL", "EDITOR"):
        if words := shlex.split(os.environ.get(variable, "")):
            return words
    return ["vi"]


def _take_over(paths: InstancePaths) -> int:
    """Have a running program read the file again."""
    try:
        answer = ask(paths, "config_reload", timeout_s=RELOAD_S)
    except NoDaemonError:
        return 0
    for warning in answer.get("warnings", []):
        print(f"warning: {warning}", file=sys.stderr)
    if keys := answer.get("requires_restart"):
        print(f"{', '.join(keys)}: counts after spacebot restart", file=sys.stderr)
    else:
        print("the running program has taken it over", file=sys.stderr)
    return 0
