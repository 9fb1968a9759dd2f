"""What models there are, how much each reads and what it costs: the copy that ships, or a newer one that was fetched.

Nothing is ever fetched by itself: an owner asks for it. A copy that was fetched lies in the instance directory and
counts until the next one, whether it is old or the address cannot be reached.

Flow:   load_catalogue -> find, context_window, price, free_models; refresh -> models.dev -> file
Floor:  llm; may import base, config
Source: control spec 2.14, pitfall 56
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import trio

from spacebot.base.clock import Clock, monotonic_s, to_text
from spacebot.base.errors import ExternalError, ModelRejectedError, RefusedError
from spacebot.base.fetch import Fetcher
from spacebot.base.paths import package_file
from spacebot.base.telemetry import kv
from spacebot.config.model import LlmConfig
from spacebot.config.provider_table import provider_table
from spacebot.llm.catalogue_data import EXTRAS, CatalogueData, CatalogueError, Row, pack, to_rows, unpack
from spacebot.llm.ollama import OLLAMA, ollama_models
from spacebot.llm.prices import Price
from spacebot.llm.routing import resolve, split_name

log = logging.getLogger(__name__)

URL = "https://models.dev/api.json"
URL_VARIABLE = "SPACEBOT_MODELS_URL"  # another address of the same format, such as a copy inside a company
FILE = "models.json.gz"  # in the instance directory
FETCH_S = 15.0
MAX_BYTES = 16 * 2**20
STALE_S = 3600.0  # from then on people are told the age of the copy
OLLAMA_S = 60.0  # so long an answer of Ollama counts

OPENROUTER = "openrouter"
FREE = ":free"
VOICE_MODELS = frozenset(
    f"openrouter/google/gemini-{name}"
    for name in (
        "2.0-flash-001", "2.5-flash", "2.5-flash-lite", "2.5-pro", "3-flash-preview", "3-pro-preview",
        "3.1-pro-preview",
    )
)  # fmt: skip
_DATE = re.compile(r"-(?:20\d{6}|20\d\d-\d\d-\d\d)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel:
    """A model that can be asked.

    Args:
        id: full name, with the provider.
        context_window: tokens; None: not known.
        tool_call: None: not known.
    """

    id: str
    name: str
    provider: str
    context_window: int | None
    tool_call: bool | None
    reasoning: bool
    input_audio: bool
    input_image: bool
    price: Price | None

    @property
    def is_voice(self) -> bool:
        """Whether it is known to turn recordings into words."""
        return self.id in VOICE_MODELS


class ModelCatalogue:
    """The catalogue in use; made by `load_catalogue`."""

    def __init__(self, data: CatalogueData, clock: Clock, *, file: Path | None = None, fetcher: Fetcher | None = None):
        """Take what is known.

        Args:
            file: where a fetched copy is kept; None: nowhere.
            fetcher: None: nothing can be fetched.
        """
        self._clock = clock
        self._file = file
        self._fetcher = fetcher
        self._fetching = trio.Lock()
        self._refreshed = 0
        self._ollama: Sequence[CatalogueModel] = ()
        self._ollama_at: float | None = None
        self._asking_ollama = trio.Lock()
        self._use(data, _index(data))

    def _use(self, data: CatalogueData, index: "_Index") -> None:
        self._data = data
        self._index = index

    @property
    def fetched_at(self) -> str:
        """When its data were published, in the form that rows keep."""
        return to_text(self._data.at)

    @property
    def age_s(self) -> float:
        """How old its data are."""
        return max(0.0, (self._clock.now() - self._data.at).total_seconds())

    @property
    def is_stale(self) -> bool:
        """Whether there may be newer data."""
        return self.age_s > STALE_S

    def find(self, model: str) -> CatalogueModel | None:
        """A model by its full name, however it is spelt; None: the catalogue does not know it."""
        provider, name = split_name(model)
        row = self._row(provider, name)
        return None if row is None else _to_model(provider, row)

    def context_window(self, model: str) -> int | None:
        """Tokens that a model reads, by its full name; None: not known."""
        row = self._row(*split_name(model))
        return row.window or None if row is not None else None

    def price(self, model: str) -> Price | None:
        """What a model costs, by its full name; None: not known."""
        row = self._row(*split_name(model))
        return None if row is None else row.price

    def free_models(self) -> Sequence[str]:
        """Full names of OpenRouter's models that cost nothing and call tools, the largest window first."""
        free = [row for row in self._data.rows.get(OPENROUTER, ()) if "t" in row.flags and _is_free(row)]
        free.sort(key=lambda row: (-row.window, row.id))
        return tuple(f"{OPENROUTER}/{row.id}" for row in free)

    async def models(self, llm: LlmConfig) -> list[CatalogueModel]:
        """The models of all providers that are configured, by provider and name.

        Only Ollama is asked, for what it has; when it does not answer, what it had is listed.
        """
        rows = {provider: list(rows) for provider, rows in self._data.rows.items()}
        for provider, extra in EXTRAS.items():
            known = {row.id for row in rows.get(provider, ())}
            rows.setdefault(provider, []).extend(row for row in extra if row.id not in known)
        found = [
            _to_model(provider, row)
            for provider in sorted(rows)
            if provider != OLLAMA and is_configured(provider, llm)
            for row in sorted(rows[provider], key=lambda row: row.name.casefold())
        ]
        return found + list(await self._of_ollama(llm))

    async def refresh(self) -> None:
        """Fetch the catalogue anew; those who ask at the same time share one answer.

        Errors: ExternalError, RefusedError when it is not to be had; the copy in use stays.
        """
        seen = self._refreshed
        async with self._fetching:
            if self._refreshed != seen:
                return
            self._ollama_at = None
            data, index = await self._fetch()
            self._use(data, index)
            self._refreshed += 1
            log.info("model catalogue fetched", extra=kv(models=sum(map(len, data.rows.values()))))
            if self._file is not None:
                try:
                    await trio.to_thread.run_sync(_keep, self._file, data)
                except OSError as error:
                    log.warning("model catalogue not kept", extra=kv(error=error.strerror))

    async def _fetch(self) -> "tuple[CatalogueData, _Index]":
        if self._fetcher is None:
            raise RefusedError("the model catalogue cannot be fetched here; the copy in use stays")
        named = os.environ.get(URL_VARIABLE, "").strip()
        try:
            answer = await self._fetcher.get(
                named or URL, may_be_private=bool(named), max_bytes=MAX_BYTES, timeout_s=FETCH_S
            )
        except (ExternalError, RefusedError) as error:
            raise type(error)(f"the model catalogue could not be fetched: {error}; {_advice(named)}") from error
        if answer.status != 200:
            raise ExternalError(
                f"the model catalogue could not be fetched: {answer.host} answered with status {answer.status}; "
                f"{_advice(named)}"
            )
        try:
            return await trio.to_thread.run_sync(_read, answer.body, self._clock)
        except CatalogueError as error:
            raise ExternalError(f"what {answer.host} sent is no model catalogue: {error}; {_advice(named)}") from error

    async def _of_ollama(self, llm: LlmConfig) -> Sequence[CatalogueModel]:
        """What Ollama has, as it said within the last minute."""
        if self._fetcher is None or not is_configured(OLLAMA, llm):
            return ()
        async with self._asking_ollama:
            if self._ollama_at is None or monotonic_s() - self._ollama_at > OLLAMA_S:
                self._ollama_at = monotonic_s()
                try:
                    rows = await ollama_models(self._fetcher, resolve(f"{OLLAMA}/any", llm).base_url)
                    self._ollama = [_to_model(OLLAMA, row, has_flags=bool(row.flags)) for row in rows]
                except (ExternalError, RefusedError) as error:
                    log.info("Ollama does not say what it has", extra=kv(error=str(error)))
        return self._ollama

    def _row(self, provider: str, name: str) -> Row | None:
        """A model's row; one that OpenRouter passes on is also looked for at its own provider."""
        if (row := _in(self._index, provider, name)) is not None:
            return row
        base, _, variant = name.partition(":")
        if provider == OPENROUTER:
            row = _in(self._index, provider, base) if variant else None
            if row is None:
                vendor, _, rest = base.partition("/")
                row = _in(self._index, _at_openrouter().get(vendor, vendor), rest)
            if row is not None and f":{variant}" == FREE:
                row = row._replace(input=0, output=0, cached=None, write=None, reasoning=None)
        return row


async def load_catalogue(folder: Path | None, fetcher: Fetcher | None, clock: Clock) -> ModelCatalogue:
    """Read the newest copy on disk: the fetched one in `folder`, or the one that ships."""
    file = None if folder is None else folder / FILE
    return ModelCatalogue(await trio.to_thread.run_sync(_newest, file), clock, file=file, fetcher=fetcher)


def is_configured(provider: str, llm: LlmConfig) -> bool:
    """Whether a provider's models can be asked by their own names."""
    try:
        return resolve(f"{provider}/any", llm).provider == provider
    except ModelRejectedError:
        return False


_Index = Mapping[str, Mapping[str, Row]]  # provider -> name in one spelling -> row


def _index(data: CatalogueData) -> _Index:
    index: dict[str, dict[str, Row]] = {}
    for provider, rows in (*data.rows.items(), *EXTRAS.items()):
        names = index.setdefault(provider, {})
        for row in rows:
            names.setdefault(_spelling(row.id), row)
        for row in rows:
            names.setdefault(_DATE.sub("", _spelling(row.id)), row)
    return index


def _in(index: _Index, provider: str, name: str) -> Row | None:
    names = index.get(provider, {})
    spelling = _spelling(name)
    return names.get(spelling) or names.get(_DATE.sub("", spelling))


def _spelling(name: str) -> str:
    return name.casefold().replace(".", "-")


@cache
def _at_openrouter() -> Mapping[str, str]:
    """Vendors' names at OpenRouter, and what the vendors are called here."""
    return {entry.openrouter: entry.id for entry in provider_table().values() if entry.openrouter}


def _is_free(row: Row) -> bool:
    return row.input == 0 and row.output == 0


def _to_model(provider: str, row: Row, *, has_flags: bool = True) -> CatalogueModel:
    return CatalogueModel(
        id=f"{provider}/{row.id}",
        name=row.name,
        provider=provider,
        context_window=row.window or None,
        tool_call="t" in row.flags if has_flags else None,
        reasoning="r" in row.flags,
        input_audio="a" in row.flags,
        input_image="i" in row.flags,
        price=row.price,
    )


def _newest(file: Path | None) -> CatalogueData:
    shipped = unpack(package_file("llm", "catalogue.json.gz").read_bytes())
    if file is None:
        return shipped
    try:
        kept = unpack(file.read_bytes())
    except FileNotFoundError:
        return shipped
    except (OSError, CatalogueError) as error:
        log.warning("fetched model catalogue not read, the one that ships is used", extra=kv(error=str(error)))
        return shipped
    return max(shipped, kept, key=lambda data: data.at)


def _read(body: bytes, clock: Clock) -> tuple[CatalogueData, _Index]:
    data = CatalogueData(clock.now(), to_rows(body))
    return data, _index(data)


def _keep(file: Path, data: CatalogueData) -> None:
    draft = file.with_name(f"{file.name}.new")
    draft.write_bytes(pack(data))
    draft.replace(file)


def _advice(named: str) -> str:
    where = f"the address in {URL_VARIABLE}" if named else f"the connection, or name a copy in {URL_VARIABLE}"
    return f"check {where}; the catalogue in use stays"
