"""The running program reads its secrets again: after a change on the command line, or to be unlocked.

Values never pass here, only the passphrase, over a socket that only the owner can open. Also how the store stands,
in one object for the status.

Flow:    control command `secrets_reload` -> LiveSecrets.refresh, in a thread; then the configuration is read again
Floor:   api
Source:  control spec 6.2
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import trio

from spacebot.base.errors import RefusedError, StorageError
from spacebot.storage.live_secrets import LiveSecrets


async def refresh_secrets(secrets: LiveSecrets, request: Mapping[str, Any]) -> None:
    """Take over what the store holds now.

    Errors: StorageError when it cannot be opened; what was known stays in use.
    """
    passphrase = request.get("passphrase")
    if passphrase is not None and not isinstance(passphrase, str):
        raise RefusedError("'passphrase' must be given as text")
    await trio.to_thread.run_sync(partial(secrets.refresh, passphrase))


async def secrets_state(secrets: LiveSecrets) -> dict[str, Any]:
    """How the store stands, for a status: locked or not, how many secrets, no names."""
    try:
        state = await trio.to_thread.run_sync(secrets.state)
    except StorageError as error:
        return {"state": "unreadable", "key": None, "counts": {}, "problem": str(error)}
    return state.to_json_object()
