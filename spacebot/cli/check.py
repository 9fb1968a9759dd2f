"""`config check`: what the program would make of the file.

Floor: cli
"""

import sys

from spacebot.base.errors import ModelRejectedError
from spacebot.base.paths import InstancePaths
from spacebot.cli.secret import open_secrets
from spacebot.config.load import load_config
from spacebot.config.load_llm import DEMO
from spacebot.config.model import Config
from spacebot.llm.choice import choose_models
from spacebot.llm.messages import ProcessKind


def check_config(paths: InstancePaths) -> int:
    """Read the file, print what is in effect and every warning.

    Errors: ConfigError with all problems.
    """
    secrets = open_secrets(paths)
    loaded = load_config(paths.config, resolve_secret=secrets.resolve)
    for warning in (*secrets.warnings, *loaded.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    config = loaded.config
    providers = [name for name in config.llm.provider if name != DEMO]
    models, faults = _models(config)
    print(f"file:      {paths.config}{'' if loaded.content_hash else ' (does not exist)'}")
    print(f"agents:    {', '.join(agent.id for agent in config.agents)} (default: {config.default_agent.id})")
    print(f"providers: {', '.join(providers) or 'none'}")
    for line in models:
        print(f"model:     {line}")
    platforms = [key if account.enabled else f"{key} (off)" for _, key, account in config.messaging.accounts()]
    print(f"platforms: {', '.join(platforms) or 'none'}")
    print(f"web chat:  {f'{config.api.bind}, port {config.api.port}' if config.api.enabled else 'off'}")
    if faults:
        for fault in faults:
            print(f"error: {fault}", file=sys.stderr)
        print("the file can be read, but messages would fail", file=sys.stderr)
        return 1
    print("the configuration is valid")
    return 0


def _models(config: Config) -> tuple[list[str], list[str]]:
    """The model that answers for each agent, a line each, and what is wrong where none can."""
    lines: list[str] = []
    faults: dict[str, None] = {}
    for agent in config.agents:
        for process in (ProcessKind.CHANNEL, ProcessKind.BRANCH, ProcessKind.WORKER):
            try:
                target = choose_models(process, None, agent, config.llm)[0]
            except ModelRejectedError as error:
                faults[f"agent {agent.id!r}, {process}: {error}"] = None
                continue
            if process is ProcessKind.CHANNEL:
                note = " (built-in rules: no provider key was found)" if target.provider == DEMO else ""
                lines.append(f"{target.model} for {agent.id}{note}")
    return lines, list(faults)
