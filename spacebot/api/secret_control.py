"""The running program reads its secrets again: after a change on the command line, or to be unlocked.

Values never pass here, only the passphrase, over a socket that only the owner can open.

Flow:    control command `secrets_reload` -> LiveSecrets.refresh, in a thread; then the configuration is read again
Floor:   api
Source:  control spec 6.2
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import trio

from spacebot.base.errors import RefusedError
from spacebot.storage.live_secrets import LiveSecrets


async def refresh_secrets(secrets: LiveSecrets, request: Mapping[str, Any]) -> None:
    """Take over what the store holds now.

    Errors: StorageError when it cannot be opened; what was known stays in use.
    """
    passphrase = request.get("passphrase")
    if passphrase is not None and not isinstance(passphrase, str):
        raise RefusedError("'passphrase' must be given as text")
    await trio.to_thread.run_sync(partial(secrets.refresh, passphrase))
