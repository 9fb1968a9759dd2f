"""Rules of the code that a tool can see; the floors themselves are checked by `lint-imports` in `make check`."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spacebot"

IMPORTERS = {  # foreign library -> the only files that may import it
    "anthropic": {"llm/anthropic.py"},
    "opentelemetry": {"api/otlp.py"},
    "openai": {"llm/openai_client.py"},
    "httpx2": {
        "base/fetch.py",
        "llm/transport.py",
        "llm/anthropic.py",
        "llm/copilot.py",
        "llm/openai_client.py",
        "llm/credentials.py",
        "api/otlp.py",
        "api/traces.py",
        "tools/opencode/gateway.py",
        "tools/opencode/wire.py",
        "tools/mcp/wire.py",
    },
    "mcp": {"tools/mcp/client.py"},
    "mcp_types": {"tools/mcp/client.py"},
    "anyio": {"tools/mcp/client.py"},
    "jsonschema": {"tools/mcp/client.py"},
    "lancedb": {"memory/vectors.py"},
    "pyarrow": {"memory/vectors.py"},
    "onnxruntime": {"memory/embedding.py"},
    "tokenizers": {"memory/embedding.py"},
    "sqlite3": {"storage/database.py"},
    "cryptography": {"storage/secrets.py"},
    "jinja2": {"agent/prompts.py"},
    "watchfiles": {"config/store.py"},
    "hypercorn": {"api/server.py"},
    "h11": {"tools/opencode/gateway.py"},
    "asyncio": {
        "messaging/asyncio_bridge.py",
        "messaging/discord/link.py",
        "messaging/discord/past.py",
        "messaging/slack/web.py",
    },
    "pypdf": {"agent/documents.py"},
    "hikari": {
        "messaging/discord/link.py",
        "messaging/discord/outbound.py",
        "messaging/discord/past.py",
        "messaging/discord/refusals.py",
    },
    "slack_sdk": {"messaging/slack/web.py"},
    "aiohttp": {"messaging/slack/web.py"},
    "telegram": {
        "messaging/telegram/adapter.py",
        "messaging/telegram/client.py",
        "messaging/telegram/outbound.py",
        "messaging/telegram/render.py",
    },
    "markdown_it": {"messaging/text.py"},
    "tomlkit": {"config/layout.py"},
    "croniter": {"cron/schedule.py"},
    "yaml": {"tools/skill_text.py"},
    "selenium": {"tools/browser/driver.py"},
    "requests": set(),
    "httpx": {"messaging/telegram/client.py"},
}
CLI_WITHOUT_WEIGHT = (
    "main.py",
    "groups.py",
    "client.py",
    "liveness.py",
    "show.py",
    "top.py",
    "chat.py",
    "memory.py",
    "memory_text.py",
    "messaging.py",
    "skill.py",
    "agent.py",
    "cron.py",
    "worker.py",
    "route.py",
    "mcp.py",
    "config.py",
    "secret.py",
    "auth.py",
    "provider.py",
    "init.py",
    "backup.py",
    "service.py",
    "doctor.py",
    "deployment.py",
)
HEAVY = {"trio", "pydantic", "starlette", "hypercorn", "httpx2", "anthropic", "openai", "lancedb", "numpy", "jinja2"}
PLATFORMS = re.compile(r"\b(discord|slack|telegram|twitch)\b", re.IGNORECASE)


@cache
def modules() -> tuple[tuple[str, ast.Module, str], ...]:
    """Each file of the package: its name from the package, its tree, its text."""
    texts = [(path, path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]
    return tuple((path.relative_to(PACKAGE).as_posix(), ast.parse(text), text) for path, text in texts)


def imports(tree: ast.AST) -> set[str]:
    """The top names that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_each_foreign_library_has_its_own_importer() -> None:
    wrong = [
        f"{name} imports {library}"
        for name, tree, _ in modules()
        for library in imports(tree) & IMPORTERS.keys()
        if name not in IMPORTERS[library]
    ]
    assert not wrong


@pytest.mark.parametrize("name", CLI_WITHOUT_WEIGHT)
def test_commands_that_talk_to_the_daemon_import_nothing_heavy(name: str) -> None:
    tree = ast.parse((PACKAGE / "cli" / name).read_text(encoding="utf-8"))
    at_import = ast.Module(
        body=[node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], type_ignores=[]
    )
    assert not imports(at_import) & HEAVY


def test_platforms_are_known_to_messaging_alone() -> None:
    allowed = ("messaging/", "config/", "api/setup.py", "api/settings.py", "cli/commands.py", "app.py")
    wrong = [name for name, _, text in modules() if PLATFORMS.search(text) and not name.startswith(allowed)]
    assert not wrong


def test_broad_handlers_stand_at_named_boundaries_only() -> None:
    wrong = [
        f"{name}: {line.strip()}"
        for name, _, text in modules()
        for line in text.splitlines()
        if re.match(r"\s*except (?:Exception|BaseException)?\b.*:", line)
        and re.search(r"except (?:Exception|BaseException)\b|except\s*:", line)
        and "# boundary:" not in line
        and not _reraises(text, line)
    ]
    assert not wrong


def _reraises(text: str, line: str) -> bool:
    """Whether the handler only cleans up or hands the error on."""
    after = text.split(line, 1)[1].splitlines()[1:12]
    indent = len(line) - len(line.lstrip())
    body = []
    for following in after:
        if following.strip() and len(following) - len(following.lstrip()) <= indent:
            break
        body.append(following.strip())
    return any(part.startswith(("raise", "write.result = outcome.Error", "failure =")) for part in body)


def test_no_promises_are_left_in_the_code() -> None:
    wrong = [name for name, _, text in modules() if re.search(r"#.*\b(?:TODO|FIXME|XXX)\b|NotImplementedError", text)]
    assert not wrong


def test_every_module_says_what_it_is_for() -> None:
    assert not [name for name, tree, _ in modules() if not ast.get_docstring(tree)]


def test_nothing_is_detached() -> None:
    """Tasks live in nurseries, threads in two places that own them."""
    owners = {"storage/database.py", "messaging/asyncio_bridge.py", "cli/chat.py", "cli/top.py"}
    wrong = [
        name
        for name, _, text in modules()
        if re.search(r"threading\.Thread\(|spawn_system_task", text) and name not in owners
    ]
    assert not wrong


def test_the_wheel_holds_every_package_and_every_prompt() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    packages = {".".join(file.relative_to(ROOT).parts[:-1]) for file in PACKAGE.rglob("__init__.py")}
    folders = {ROOT / "prompts", *(file.parent for file in (ROOT / "prompts").rglob("*.md"))}
    prompts = {".".join(["spacebot", "_bundled", *folder.relative_to(ROOT).parts]) for folder in folders}
    assert listed == packages | prompts
