"""What all tables of the configuration have in common.

Floor: config
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, JsonValue

RESTART, FORM = "x-restart", "x-form"
AT_RESTART: dict[str, JsonValue] = {RESTART: True}  # for `Field(json_schema_extra=…)`: a new value counts from then on


def form(low: float, high: float | None = None) -> dict[str, JsonValue]:
    """For `Field(json_schema_extra=…)`: what forms and the API accept, where the file may go further."""
    return {FORM: [low, high]}


class Table(BaseModel):
    """A table of the file: values only, unknown keys are errors (the reader has taken them out before)."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def is_url(value: str | None) -> str | None:
    """Check an address that the owner gave; a slash at its end is dropped."""
    if value is None:
        return None
    value = value.rstrip("/")
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        raise ValueError("must be an absolute http or https URL") from error
    if value and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("must be an absolute http or https URL")
    return value


def is_loopback_address(bind: str) -> bool:
    """Whether only this machine can connect there."""
    if bind == "localhost":
        return True
    try:
        return ip_address(bind.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
