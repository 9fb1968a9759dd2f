"""How important a memory is today: what it was given, how it is used, how long it lay idle, how it is linked.

The formula depends on the row and the time alone, never on how often it was applied, so the stored value is a
cache that any number of passes may renew.

Floor:   memory
Source:  memory spec 9.2, 9.3, pitfall P-01
"""

from collections.abc import Mapping
from datetime import datetime
from math import log2, pow
from types import MappingProxyType

from spacebot.memory.types import RELATION_WEIGHT, MemoryType

DECAY: Mapping[str, float] = MappingProxyType(  # share of the decay rate; memory spec 9.2
    {
        MemoryType.IDENTITY: 0.0,
        MemoryType.DECISION: 0.15,
        MemoryType.PREFERENCE: 0.15,
        MemoryType.GOAL: 0.3,
        MemoryType.FACT: 0.3,
        MemoryType.TODO: 0.5,
        MemoryType.EVENT: 1.0,
        MemoryType.OBSERVATION: 1.0,
    }
)
ACCESS, CENTRALITY = 0.25, 0.25  # what heavy use and many links add at most, each
FULL_ACCESS = 5.0  # doublings of the access count that count fully
HALF_STRENGTH = 4.0  # summed edge weight at which centrality is one half
NOTICEABLE = 0.005  # smaller changes are not written: a preference would be every hour

# The strength of a memory's links. Private neighbours do not count for a shared memory: what a room sees must not
# depend on what somebody said in a direct chat. The two halves use an index each.
_RELATIONS = " ".join(f"WHEN '{relation}' THEN {weight}" for relation, weight in RELATION_WEIGHT.items())
_HALF = (
    f"coalesce((SELECT sum(a.weight * CASE a.relation_type {_RELATIONS} ELSE 1.0 END) FROM associations a "
    "JOIN memories n ON n.id = a.{far} WHERE a.{near} = m.id AND n.forgotten = 0 "
    "AND (n.is_private = 0 OR m.is_private = 1)), 0.0)"
)
STRENGTH = f"({_HALF.format(near='source_id', far='target_id')} + {_HALF.format(near='target_id', far='source_id')})"


def centrality_of(strength: float) -> float:
    """0 without links, towards 1 with many strong ones; memory spec 9.3."""
    return strength / (strength + HALF_STRENGTH)


def effective_importance(
    base: float,
    memory_type: str,
    *,
    permanent: bool,
    idle_days: float,
    access_count: int,
    centrality: float,
    decay_rate: float,
) -> float:
    """Importance today, 0..1; memory spec 9.2.

    Args:
        idle_days: since the memory was made, changed or last recalled, whatever came last.
        decay_rate: of a type that decays fully, a day.
    """
    kept = 1.0 if permanent else 1.0 - decay_rate * DECAY.get(memory_type, DECAY[MemoryType.FACT])
    access = min(1.0, log2(1 + access_count) / FULL_ACCESS)
    value = base * pow(kept, max(0.0, idle_days)) * (1 + ACCESS * access + CENTRALITY * centrality)
    return min(1.0, max(0.0, value))


def days_between(earlier: datetime, later: datetime) -> float:
    """A span in days, fractions included."""
    return (later - earlier).total_seconds() / 86_400
