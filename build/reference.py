"""Write docs/configuration.md from the models of the configuration: `python build/reference.py`.

Every table with its keys, their meaning, limits and defaults; a test compares the page with what this makes.

Flow:   spacebot/config/schema.py, environment.py -> render -> docs/configuration.md
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacebot.config.schema import TableSpec

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

One file, `config.toml`, in the instance's folder: `~/.spacebot`, the folder that `SPACEBOT_DIR` names, or wherever
`--config` points. Without a file the environment decides. This page is made from the program's own models
(`python build/reference.py`).

What counts for a key, from the top: the agent's own table, `[defaults]`, the environment, the built-in value; field by
field, not table by table. A change of the file counts within seconds; what needs a restart says so. A broken file
changes nothing: the running program keeps its values and says where the mistake is.

| Command | Does |
|---|---|
| `spacebot config check` | reads the file and says what is wrong with it |
| `spacebot config show` | every value that is set, and where it comes from; `--all` also what is not |
| `spacebot config explain KEY` | what a key means, what it may be, what it is now |
| `spacebot config get KEY` | the value alone |
| `spacebot config set KEY VALUE` | changes the file, comments and order stay; `--agent ID`: the agent's table |
| `spacebot config unset KEY` | takes a key out, so that the level below counts |
| `spacebot config edit` | opens the file in `$VISUAL` or `$EDITOR`; it is checked before it counts |
| `spacebot config schema` | a JSON Schema for editors |

**Values.** Any text may be `env:NAME`, the value of a variable; a key, a token and what MCP servers get may be
`secret:NAME`, one of the secret store (`spacebot secret set NAME`). One that leads nowhere counts as absent, and so
does an empty text. `${NAME}` is filled in
inside command, arguments, variables, address and headers of MCP servers.

**Editors.** `spacebot config schema > config.schema.json` beside the file, and as its first line:

```toml
#:schema ./config.schema.json
```

Editors with Taplo (Even Better TOML in VS Code, and others) then complete keys, show their meaning and mark mistakes.
"""


def render() -> str:
    """The whole page."""
    from spacebot.config.environment import CONTAINER_VARIABLES, VARIABLES
    from spacebot.config.schema import table_specs

    parts = [INTRODUCTION, *("\n".join(_table(table)) for table in table_specs())]
    parts.append("\n".join(_variables("Variables", "", VARIABLES)))
    note = "They count when there is no file, beside the credentials that the tables above name. Lists have commas."
    parts.append("\n".join(_variables("Variables of a container", note, CONTAINER_VARIABLES)))
    return "\n".join(parts)


def _table(table: "TableSpec") -> Iterator[str]:
    yield f"## `{table.header}`"
    yield ""
    if table.description:
        yield table.description
        yield ""
    yield "| Key | Value | Default | Meaning |"
    yield "|---|---|---|---|"
    for key in table.keys:
        value = key.kind + (f", {key.limits}" if key.limits else "")
        notes = " **Required.**" if key.is_required else ""
        notes += " From the next start on." if key.at_restart else ""
        low, high = key.form
        if low is not None:
            notes += f" In the web app {f'{low:g} to {high:g}' if high is not None else f'at least {low:g}'}."
        default = f"`{key.default}`" if key.default else ""
        yield f"| `{key.key}` | {_cell(value)} | {_cell(default)} | {_cell(key.description + notes)} |"
    yield ""
    yield "```toml"
    yield table.header.replace("<id>", "my-provider")
    shown = [key for key in table.keys if key.is_required] or [key for key in table.keys if not key.default][:2]
    yield from (key.example for key in shown or table.keys[:2])
    yield "```"
    yield ""


def _variables(title: str, note: str, variables: Mapping[str, str]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    if note:
        yield note
        yield ""
    yield "| Variable | Meaning |"
    yield "|---|---|"
    yield from (f"| `{name}` | {_cell(meaning)} |" for name, meaning in variables.items())
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Write the page; with --check only say whether it is as it should be."""
    sys.path.insert(0, str(ROOT))
    text = render().rstrip() + "\n"
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
