"""`config check`: what the program would make of the file.

Floor: cli
"""

import sys

from spacebot.base.paths import InstancePaths
from spacebot.config.load import DEMO, load_config


def check_config(paths: InstancePaths) -> int:
    """Read the file, print what is in effect and every warning.

    Errors: ConfigError with all problems.
    """
    loaded = load_config(paths.config)
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    config = loaded.config
    providers = [name for name in config.llm.provider if name != DEMO]
    print(f"file:      {paths.config}{'' if loaded.content_hash else ' (does not exist)'}")
    print(f"agents:    {', '.join(agent.id for agent in config.agents)} (default: {config.default_agent.id})")
    print(f"providers: {', '.join(providers) or 'none; the built-in demo model answers'}")
    print(f"web chat:  {f'{config.api.bind}, port {config.api.port}' if config.api.enabled else 'off'}")
    print("the configuration is valid")
    return 0
