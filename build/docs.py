"""Write the made parts of the pages in docs/: `python build/docs.py`; `--check` only says whether they are current.

A made part stands between `<!-- made: NAME -->` and `<!-- end -->`; what lies around it is written by hand. Tests
compare each with what this makes.

Flow:    config/providers.toml, config/environment.py, routes of the API -> parts -> docs/*.md
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_PART = re.compile(r"<!-- made: ([\w-]+) -->\n.*?<!-- end -->\n", re.DOTALL)

# Variables that are read where they are used, beside those of config/environment.py and of config/providers.toml.
OTHERS: Mapping[str, str] = {
    "SPACEBOT_SECRET_PASSPHRASE": "Passphrase of the secret store; it is taken out of the environment at once.",
    "SPACEBOT_CACHE": "Folder into which the executable unpacks itself; else `~/.cache/spacebot`.",
    "SPACEBOT_MODELS_URL": "Another address of the model catalogue, in the format of models.dev.",
    "SPACEBOT_GITHUB_ARCHIVES": "Another address of skill archives.",
    "SPACEBOT_SKILLS_REGISTRY": "Another registry of skills.",
    "SPACEBOT_OAUTH_AUTHORIZE_URL": "Another page to sign in at; for tests.",
    "SPACEBOT_OAUTH_TOKEN_URL": "Another address of tokens; for tests.",
    "SPACEBOT_DISCORD_REST_URL": "Stands in for `messaging.discord.rest_url`.",
    "SPACEBOT_SLACK_API_URL": "Stands in for `messaging.slack.api_url`.",
    "SPACEBOT_TELEGRAM_API_URL": "Stands in for `messaging.telegram.api_url`.",
    "SPACEBOT_TELEGRAM_FILE_URL": "Stands in for `messaging.telegram.file_url`.",
    "SPACEBOT_TWITCH_HOST": "Stands in for `messaging.twitch.host`.",
    "SPACEBOT_TWITCH_PORT": "Stands in for `messaging.twitch.port`.",
    "SPACEBOT_TWITCH_TLS": "Stands in for `messaging.twitch.tls`.",
}
# Set by the program for itself or for its children; nobody else has a use for them.
INTERNAL: Mapping[str, str] = {
    "SPACEBOT_EXECUTABLE": "Where the executable lies that unpacked this program.",
    "SPACEBOT_REEXEC": "How the program ran before a restart in place.",
    "SPACEBOT_SECRET_FD": "Pipe by which a passphrase outlives a restart in place.",
    "SPACEBOT_COMMAND": "Mark of commands that workers run.",
}


def providers() -> Iterator[str]:
    """Every built-in provider with the ways to name its key and the models that it gives by itself."""
    from spacebot.config.provider_table import provider_table

    yield "| Provider | Id | Key in `[llm]` | Variable | Talks and thinks with | Works with |"
    yield "|---|---|---|---|---|---|"
    for entry in provider_table().values():
        if entry.id != "demo":
            variables = " or ".join(f"`{name}`" for name in (entry.env, entry.token_env) if name)
            keys = ", ".join(f"`{name}`" for name in (entry.key, entry.url_key) if name)
            yield f"| {entry.name} | `{entry.id}` | {keys} | {variables} | `{entry.first}` | `{entry.second}` |"


def hosts() -> Iterator[str]:
    """The host of every built-in provider."""
    from urllib.parse import urlsplit

    from spacebot.config.provider_table import provider_table

    entries = [entry for entry in provider_table().values() if entry.base_url]
    yield ", ".join(f"`{urlsplit(entry.base_url).netloc}` ({entry.name})" for entry in entries) + "."


def variables() -> Iterator[str]:
    """Every variable that the program reads, without those of keys of providers."""
    from spacebot.config.environment import CONTAINER_VARIABLES, VARIABLES

    yield "| Variable | What it does |"
    yield "|---|---|"
    for name, meaning in {**VARIABLES, **OTHERS}.items():
        yield f"| `{name}` | {meaning} |"
    for name, meaning in CONTAINER_VARIABLES.items():
        yield f"| `{name}` | {meaning} Only without a file. |"


def routes() -> Iterator[str]:
    """Every route of the API, from its own document."""
    from spacebot.api.openapi import to_markdown

    text = to_markdown(api_document())
    yield text[text.index("\n## ") :].strip()


def api_document() -> dict[str, Any]:
    """The document that `GET /api/openapi.json` answers, made without a running program."""
    import trio

    from spacebot.api.feed import Feed
    from spacebot.api.openapi import document
    from spacebot.api.server import build_app
    from spacebot.api.streams import Streams
    from spacebot.api.tally import HttpFigures
    from spacebot.base.events import EventBus
    from spacebot.base.tree import Tree
    from spacebot.config.model import ApiConfig

    async def make() -> dict[str, Any]:
        events = EventBus()
        program: Any = SimpleNamespace(http=HttpFigures())
        app: Any = build_app(
            program, ApiConfig(), events=events, tree=Tree(), run_id="", streams=Streams(), feed=Feed(events, "")
        )
        return document(one for one in app.routes if "{path:path}" not in one.path)

    return trio.run(make)  # the clock of the program is that of its event loop


PARTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "providers": providers, "hosts": hosts, "variables": variables, "routes": routes,
}  # fmt: skip


def render(text: str) -> str:
    """A page with its made parts as they should be."""

    def made(found: re.Match[str]) -> str:
        return f"<!-- made: {found[1]} -->\n" + "\n".join(PARTS[found[1]]()) + "\n<!-- end -->\n"

    return _PART.sub(made, text)


def main() -> int:
    """Write the pages; with --check only say whether they are as they should be."""
    sys.path.insert(0, str(ROOT))
    code = 0
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (wanted := render(text)) != text:
            code = 1
            if "--check" not in sys.argv[1:]:
                page.write_text(wanted, encoding="utf-8")
    return code if "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
