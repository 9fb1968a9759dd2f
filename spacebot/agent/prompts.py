"""Prompt templates and identity files: read, checked, cached, reloaded.

A template is found by its path without the ending (`CHANNEL`, `fragments/turn`, `tools/reply`), first in the
agent's `prompts/`, then in the instance's, then among the bundled ones. Where owners wrote some, all are compiled and
rendered once when they are read, so a broken one is refused as a whole and the old set stays in use. The bundled ones
alone are known to fit together: each is compiled when it is first needed, or when somebody comes (`warm_up`).

Floor:  agent; the only importer of jinja2
Source: process spec 15 and 16, with the variable names of the product's own templates
"""

import hashlib
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any

import trio
from jinja2 import DictLoader, Environment, Template, TemplateError, meta

from spacebot.base.errors import ConfigError, RefusedError
from spacebot.llm.messages import ToolSpec
from spacebot.tools.contract import Tool, schema_of

log = logging.getLogger(__name__)

IDENTITY_FILES = ("SOUL", "IDENTITY", "USER")
VOLATILE = frozenset({"status_block", "current_time", "memory_bulletin"})  # change from turn to turn
MAX_FILE_BYTES = 256_000
MOST_SPECS = 500  # made and kept
MOST_COMPILED = 1000  # templates, of all agents
_compiling = threading.Lock()
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Set:
    """One consistent reading of all files."""

    sources: Mapping[str, str]
    templates: "_Templates"
    identity: Mapping[str, str]
    digest: str


class _Templates:
    """The templates of one reading; compiled when they are needed."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = sources
        self._environment = _environment(sources)
        self._made: dict[str, Template] = {}
        self._mentioned: dict[str, frozenset[str]] = {}

    def get(self, name: str) -> Template | None:
        """A template; None: there is none of that name. Errors: ConfigError when it is broken."""
        template = self._made.get(name)
        if template is None and name in self._sources:
            with _blame(name):
                code, self._mentioned[name] = _compiled(self._sources[name])
                template = Template.from_code(self._environment, code, self._environment.make_globals(None))
            self._made[name] = template
        return template

    def variables(self, name: str) -> frozenset[str]:
        """What a template mentions; nothing where there is none. Errors: ConfigError when it is broken."""
        if name not in self._mentioned:
            self.get(name)
        return self._mentioned.get(name, frozenset())

    def try_all(self, identity: Mapping[str, str]) -> None:
        """Compile and render each. Errors: ConfigError naming the one that is broken."""
        for name in self._sources:
            template = self.get(name)
            assert template is not None
            with _blame(name):
                template.render(**identity)


class Prompts:
    """The texts of one agent; made by `load_prompts`."""

    def __init__(self, folders: Sequence[Path], identity_folder: Path, current: _Set) -> None:
        self._folders = folders
        self._identity_folder = identity_folder
        self._set = current
        self._specs: dict[tuple[object, ...], ToolSpec] = {}
        self._stable: dict[str, tuple[dict[str, str], str]] = {}  # with what it was filled in
        self._fixed: dict[str, str] = {}  # rendered without variables

    def render(self, name: str, **variables: Any) -> str:
        """Fill in a template; variables that it does not get are empty.

        Errors: ConfigError when there is no such template, or an override fails with these values.
        """
        if not variables and (fixed := self._fixed.get(name)) is not None:
            return fixed
        template = self._set.templates.get(name)
        if template is None:
            raise ConfigError(f"there is no prompt {name!r}; put it back into the prompts folder")
        try:
            text = template.render(**self._set.identity, **variables).strip()
        except TemplateError as error:
            raise ConfigError(f"prompt {name!r} cannot be rendered: {error}") from error
        if not variables:
            self._fixed[name] = text
        return text

    def render_stable(self, name: str, **variables: str) -> tuple[str, bool]:
        """Fill in a system prompt; the second value says whether it is the same in every turn.

        A template that uses `status_block`, `current_time` or `memory_bulletin` is rendered anew each time;
        the others are kept until a file or a value changes, so that the text stays identical to the byte.
        """
        if self._set.templates.variables(name) & VOLATILE:
            return self.render(name, **variables), False
        kept = self._stable.get(name)
        if kept is None or kept[0] != variables:
            kept = self._stable[name] = (variables, self.render(name, **variables))
        return kept[1], True

    def uses(self, name: str, variable: str) -> bool:
        """Whether a template mentions a variable."""
        return variable in self._set.templates.variables(name)

    async def warm_up(self) -> None:
        """Compile what is not compiled yet, so that the first message does not wait for it. Errors: ConfigError."""
        current = self._set
        await trio.to_thread.run_sync(current.templates.try_all, current.identity)

    @property
    def tool_names(self) -> frozenset[str]:
        """The names of all tools of the program's own."""
        return frozenset(name.removeprefix("tools/") for name in self._set.sources if name.startswith("tools/"))

    def tool_spec(self, tool: Tool) -> ToolSpec:
        """The tool as models see it; the same object each time until the prompts or its words change.

        A tool's `words` (a mapping of texts), where it has some, go into its description. One that is not ours
        brings its whole `spec`.
        """
        own: ToolSpec | None = getattr(tool, "spec", None)
        if own is not None:
            return own
        words: Mapping[str, str] = getattr(tool, "words", {})
        key = (type(tool), tool.arguments, tuple(sorted(words.items())))
        spec = self._specs.get(key)
        if spec is None:
            if len(self._specs) >= MOST_SPECS:
                self._specs.clear()  # words that come from live settings change now and then
            spec = ToolSpec(tool.name, self.render(f"tools/{tool.name}", **words), schema_of(tool.arguments))
            self._specs[key] = spec
        return spec

    async def identity(self) -> dict[str, str]:
        """The identity files as they lie on disk, by `soul`, `identity`, `user`. Errors: ConfigError."""
        return await trio.to_thread.run_sync(_identity_texts, self._identity_folder)

    async def write_identity(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Replace identity files and take them over. Errors: RefusedError when one is too long; ConfigError."""
        for name, text in texts.items():
            if len(text.encode()) > MAX_FILE_BYTES:
                raise RefusedError(f"{name} is longer than {MAX_FILE_BYTES} bytes; shorten it")
        await trio.to_thread.run_sync(_replace_identity, self._identity_folder, texts)
        await self.reload()
        return await self.identity()

    async def reload(self) -> list[str]:
        """Read all files again.

        Returns the names of templates and identity files that changed.
        Errors: ConfigError when one is broken; then nothing changes.
        """
        fresh = await trio.to_thread.run_sync(_read, self._folders, self._identity_folder)
        before = {**self._set.sources, **self._set.identity}
        after = {**fresh.sources, **fresh.identity}
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if changed:
            self._set = fresh
            self._specs.clear()
            self._stable.clear()
            self._fixed.clear()
            log.info("prompts reloaded", extra={"kv": {"changed": ",".join(changed)}})
        return changed


async def load_prompts(bundled: Path, instance: Path, agent_prompts: Path, identity_folder: Path) -> Prompts:
    """Read the templates and identity files of an agent; missing identity files are written with a start.

    Errors: ConfigError naming the file that is broken or missing.
    """
    folders = (bundled, instance, agent_prompts)
    await trio.to_thread.run_sync(_write_identity, bundled / "identity", identity_folder)
    return Prompts(folders, identity_folder, await trio.to_thread.run_sync(_read, folders, identity_folder))


def _write_identity(starters: Path, folder: Path) -> None:
    for name in IDENTITY_FILES:
        target = folder / f"{name}.md"
        if not target.exists():
            try:
                target.write_text((starters / f"{name}.md").read_text(encoding="utf-8"), encoding="utf-8")
            except OSError as error:
                log.warning("identity file not written", extra={"kv": {"file": str(target), "error": error.strerror}})


def _identity_texts(folder: Path) -> dict[str, str]:
    files = {name.lower(): folder / f"{name}.md" for name in IDENTITY_FILES}
    return {key: _text(file) if file.is_file() else "" for key, file in files.items()}


def _replace_identity(folder: Path, texts: Mapping[str, str]) -> None:
    """Write each file beside its place and move it there, so that nobody reads half of one."""
    for name in IDENTITY_FILES:
        if (text := texts.get(name.lower())) is None:
            continue
        draft = folder / f".{name}.tmp"
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(folder / f"{name}.md")
        except OSError as error:
            raise ConfigError(f"{name}.md cannot be written ({error.strerror}); check the agent's folder") from error
        finally:
            draft.unlink(missing_ok=True)


def _read(folders: Sequence[Path], identity_folder: Path) -> _Set:
    sources: dict[str, str] = {}
    is_own = False
    for folder in folders:
        for file in sorted(folder.rglob("*.md")) if folder.is_dir() else ():
            name = file.relative_to(folder).with_suffix("").as_posix()
            if not name.startswith("identity/"):
                sources[name] = _text(file)
                is_own = is_own or folder != folders[0]
    if "CHANNEL" not in sources:
        raise ConfigError(f"the prompt CHANNEL.md is missing in {str(folders[0])!r}; install the program again")
    identity = {}
    for key in IDENTITY_FILES:
        file = identity_folder / f"{key}.md"
        text = _COMMENT.sub("", _text(file)).strip() if file.is_file() else ""
        identity[key.lower()] = text
    templates = _Templates(sources)
    if is_own:
        templates.try_all(identity)
    digest = hashlib.sha256(repr((sorted(sources.items()), sorted(identity.items()))).encode()).hexdigest()
    return _Set(sources, templates, identity, digest)


@contextmanager
def _blame(name: str) -> Iterator[None]:
    """Name the template that is broken. Errors: ConfigError."""
    try:
        yield
    except (TemplateError, TypeError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise ConfigError(f"prompt {name + '.md'!r}{where} is broken: {error}; mend it or remove the file") from error


def _environment(sources: Mapping[str, str]) -> Environment:
    # Texts for models, not HTML.
    return Environment(loader=DictLoader(sources), autoescape=False, keep_trailing_newline=False, trim_blocks=False)


def _compiled(source: str) -> tuple[CodeType, frozenset[str]]:
    """A template's code and the variables that it mentions; made once for all agents that share its text."""
    with _compiling:  # agents that open at the same time would all do the same work
        return _compile(source)


@lru_cache(maxsize=MOST_COMPILED)
def _compile(source: str) -> tuple[CodeType, frozenset[str]]:
    environment = _environment({})
    tree = environment.parse(source)
    variables = frozenset(meta.find_undeclared_variables(tree))
    return environment.compile(tree), variables


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{str(file)!r} is larger than {MAX_FILE_BYTES} bytes; a prompt must be shorter")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {str(file)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(file)!r} is not UTF-8 text; save it as UTF-8") from error
