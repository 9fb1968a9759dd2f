"""Commands that describe themselves in a file of their own: one table, loaded only for the command that was typed.

Flow:    main -> add_groups -> the one module that is needed -> its options, its function
Floor:   cli; standard library only
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spacebot.base.paths import InstancePaths
    from spacebot.cli.daemon import Program

Add = Callable[..., ArgumentParser]


@dataclass(frozen=True, slots=True)
class Group:
    """One word of the command line.

    Args:
        module: below `spacebot.cli`.
        describe: its function that adds commands or options: takes the parser, and for a group what adds one.
        run: its function that does it: takes paths and options.
    """

    name: str
    about: str
    module: str
    describe: str
    run: str
    has_commands: bool = True

    def load(self, name: str) -> Any:
        """A function of the module."""
        return getattr(import_module(f"spacebot.cli.{self.module}"), name)

    def __call__(self, paths: "InstancePaths", program: "Program", options: Namespace) -> int:
        """Do what was typed."""
        code: int = self.load(self.run)(paths, options)
        return code


GROUPS = (
    Group("memory", "What an agent knows.", "memory", "add_memory_commands", "run_memory"),
    Group("agent", "The agents.", "agent", "add_agent_commands", "run_agent"),
    Group("cron", "Schedules.", "cron", "add_cron_commands", "run_cron"),
    Group("worker", "Workers.", "worker", "add_worker_commands", "run_worker"),
    Group("mcp", "MCP servers.", "mcp", "add_mcp_commands", "run_mcp"),
    Group("route", "Which model answers.", "route", "add_route_commands", "run_route"),
    Group("messaging", "The connections to platforms.", "messaging", "add_messaging_commands", "run_messaging"),
    Group("secret", "Keys, stored encrypted.", "secret", "add_secret_commands", "run_secret"),
    Group("auth", "Signing in at a provider.", "auth", "add_auth_commands", "run_auth"),
    Group("provider", "Hosts of models.", "provider", "add_provider_commands", "run_provider"),
    Group("skill", "Recipes for workers.", "skill", "add_skill_commands", "run_skill"),
    Group("service", "A service of systemd.", "service", "add_service_commands", "run_service"),
    Group("config", "The configuration file.", "config", "add_config_commands", "run_config"),
    Group("backup", "Write everything into one file.", "backup", "add_backup_options", "run_backup", False),
    Group("restore", "Take a backup over.", "backup", "add_restore_options", "run_restore", False),
)


def add_groups(add: Add, words: Collection[str]) -> None:
    """Describe all groups, in full only the one that was typed.

    Args:
        add: makes the parser of one command: name, function, description, the group it goes into.
        words: what was typed.
    """
    for group in GROUPS:
        command = add(group.name, group, group.about)
        if group.name not in words:
            continue
        describe = group.load(group.describe)
        if group.has_commands:
            describe(command, _adder(add, group))
        else:
            describe(command)


def _adder(add: Add, group: Group) -> Add:
    return lambda name, *words: add(name, group, *words)
