"""The vendors' libraries, one behind each dialect: imported in a thread when a model of theirs is first needed.

Floor:  llm; may import base, config
"""

import logging
import os
from collections.abc import Mapping

import trio

from spacebot.base.errors import ModelUnavailableError
from spacebot.config.model import ApiType
from spacebot.llm.dialect import Dialect

log = logging.getLogger(__name__)


class _Loading:
    """A library on its way in; many may wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: Exception | None = None


class Libraries:
    """All dialects, and which of them can be used already.

    Args:
        nursery: imports run in it, and outlive the call that asked for them.
    """

    def __init__(self, dialects: Mapping[ApiType, Dialect], nursery: trio.Nursery) -> None:
        self._dialects = dialects
        self._nursery = nursery
        self._loading: dict[int, _Loading] = {}

    async def ready(self, kind: ApiType) -> Dialect:
        """The dialect, once its library is imported; the first who asks starts that.

        Errors: ModelUnavailableError when it cannot be imported; the next call tries again.
        Cancel: the import goes on in its thread until it is finished.
        """
        dialect = self._dialects[kind]
        if dialect.is_loaded:
            return dialect
        loading = self._loading.get(id(dialect))
        if loading is None:
            loading = self._loading[id(dialect)] = _Loading()
            self._nursery.start_soon(_load, dialect, loading)
        if not loading.done.is_set():
            await loading.done.wait()
        if loading.error is not None:
            if self._loading.get(id(dialect)) is loading:
                del self._loading[id(dialect)]  # the machine may be repaired by then
            raise ModelUnavailableError(
                f"the library for {kind.value!r} models cannot be loaded: {_advice(loading.error)}",
                model=kind.value,
            ) from loading.error
        return dialect


async def _load(dialect: Dialect, loading: _Loading) -> None:
    try:
        await trio.to_thread.run_sync(dialect.load)
    except Exception as error:  # boundary: service
        log.error("model library not loaded", exc_info=error)
        loading.error = error
    finally:
        loading.done.set()


def _advice(error: Exception) -> str:
    """Why a library was not loaded, and what to do."""
    if isinstance(error, OSError) and error.filename is None:  # certificates; any other file would be named
        variables = (name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name))
        named = " and ".join(f"{name}={os.environ[name]!r}" for name in variables)
        where = f"the certificates of {named}; correct or unset that" if named else "the certificates; check them"
        return f"{error.strerror or type(error).__name__} in {where}"
    return f"{type(error).__name__}: {error}; reinstall the program if it goes on"
