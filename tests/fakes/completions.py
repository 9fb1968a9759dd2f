"""Completions as the log of costs takes them."""

from spacebot.conversations.usage_log import UsageEntry
from spacebot.llm.messages import Usage
from spacebot.llm.prices import Cost, CostStatus

DAY = "2026-03-01"


def completion(
    model: str,
    usage: Usage,
    *,
    day: str = DAY,
    kind: str = "channel",
    process_id: str | None = None,
    cost: float | None = None,
    status: CostStatus | None = None,
    saved: float | None = None,
) -> UsageEntry:
    """One completion at noon of a day; without a cost its price is not known."""
    known = CostStatus.UNKNOWN if cost is None else CostStatus.ESTIMATED
    return UsageEntry(
        at=f"{day}T12:00:00.000Z",
        day=day,
        process_kind=kind,
        process_id=process_id,
        channel_id="test:room",
        model=model,
        usage=usage,
        cost=Cost(cost, status or known),
        saved_usd=saved,
    )
