"""All errors of the program.

SpacebotError
├── ConfigError               the owner's file is wrong: file, key, reason
├── NotFoundError             no such agent, channel, memory, process
├── RefusedError              permission, secret, limit; safe to show
│   └── LimitReachedError     too many branches, workers, bytes
├── ModelError                provider, model
│   ├── ModelBusyError        429: retry_after_s
│   ├── ModelUnavailableError 5xx, connection, time-out, unreadable body
│   ├── ContextOverflowError  the request is too long
│   ├── ModelRejectedError    4xx that will not heal
│   └── BudgetExceededError   the owner's own limit; nothing was sent
├── DeliveryError             adapter, target, permanent or not
├── StorageError              database, vectors, secrets
│   └── EmbeddingError
├── ToolError                 text for the model
└── ExternalError             a subprocess or service outside failed

A message says what failed and what to do next; it never holds a secret. Handlers read types and
attributes, never text.

Floor: base
"""


class SpacebotError(Exception):
    """Root of every error that the program raises on purpose."""


class ConfigError(SpacebotError):
    """The owner's file is wrong."""


class NotFoundError(SpacebotError):
    """What was asked for does not exist."""


class RefusedError(SpacebotError):
    """Not allowed; the message is safe to show to anybody."""


class BusyError(RefusedError):
    """Something else has to end first."""


class LimitReachedError(RefusedError):
    """A configured number is reached."""

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class ModelError(SpacebotError):
    """A model call failed.

    `retryable` says whether the same model may be asked again; `may_fall_back` whether another
    model of the chain may be asked instead (never after a bad request or wrong credentials).
    """

    retryable = False
    may_fall_back = False

    def __init__(self, message: str, *, model: str) -> None:
        super().__init__(message)
        self.model = model


class ModelBusyError(ModelError):
    """The provider asks us to slow down."""

    retryable = True
    may_fall_back = True

    def __init__(self, message: str, *, model: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, model=model)
        self.retry_after_s = retry_after_s


class ModelUnavailableError(ModelError):
    """The provider is down, unreachable, too slow or answered with something unreadable."""

    retryable = True
    may_fall_back = True


class ContextOverflowError(ModelError):
    """The request is longer than the model can read."""

    may_fall_back = True


class ModelRejectedError(ModelError):
    """The provider refused the request and will refuse it again.

    Args:
        status_code: HTTP status, or None when the refusal came before a request (no key).
        is_unknown_model: the provider does not know the model; another of the chain may do.
    """

    def __init__(
        self, message: str, *, model: str, status_code: int | None = None, is_unknown_model: bool = False
    ) -> None:
        super().__init__(message, model=model)
        self.status_code = status_code
        self.may_fall_back = is_unknown_model


class BudgetExceededError(ModelError):
    """The agent has spent what its owner allows for today; the call was not sent.

    Args:
        retry_after_s: when to look again: the day may be over then, or the owner has raised the limit.
    """

    def __init__(self, message: str, *, model: str, retry_after_s: float) -> None:
        super().__init__(message, model=model)
        self.retry_after_s = retry_after_s


class DeliveryError(SpacebotError):
    """A platform refused or failed.

    Args:
        is_permanent: trying the same again soon is pointless: forbidden, gone, invalid, wrong credentials.
        retry_after_s: the pause that the platform asks for.
    """

    def __init__(self, message: str, *, is_permanent: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent
        self.retry_after_s = retry_after_s


class StorageError(SpacebotError):
    """A database, index or file could not be read or written."""


class EmbeddingError(StorageError):
    """The embedding model is missing or failed."""


class ToolError(SpacebotError):
    """A tool call failed; the message is meant for the model."""


class DeniedError(ToolError):
    """A tool call was refused because it would do harm. It is logged.

    Args:
        about: what was tried, for the log: no word of what the model wrote.
    """

    def __init__(self, message: str, *, about: str) -> None:
        super().__init__(message)
        self.about = about


class ExternalError(SpacebotError):
    """A subprocess or a service outside of the program failed."""
