"""Counters, gauges and histograms, and Prometheus' text of them.

Floor:   base
Source:  the text format 0.0.4 of prometheus.io/docs/instrumenting/exposition_formats
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name, `counter` or `gauge`, what it says, and its labelled values."""

    name: str
    kind: str
    about: str
    samples: Sequence[tuple[Mapping[str, str], int | float]]

    def lines(self) -> Iterator[str]:
        """The values, one a line."""
        return (_line(self.name, labels, value) for labels, value in self.samples)


class Spread:
    """How values spread over the bounds of a histogram."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self._counts)

    def lines(self, name: str, labels: Mapping[str, str]) -> Iterator[str]:
        """Its series in the text format."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield _line(f"{name}_bucket", {**labels, "le": bound}, total)
        yield _line(f"{name}_sum", labels, round(self._sum, 4))
        yield _line(f"{name}_count", labels, total)


@dataclass(frozen=True, slots=True)
class Histogram:
    """One metric of spans of time, in seconds."""

    name: str
    about: str
    spreads: Sequence[tuple[Mapping[str, str], Spread]]
    kind = "histogram"

    def lines(self) -> Iterator[str]:
        """The series of all its labels."""
        for labels, spread in self.spreads:
            yield from spread.lines(self.name, labels)


def to_text(families: Sequence[Family | Histogram]) -> str:
    """The families in Prometheus' text format, with escaped labels."""
    lines: list[str] = []
    for family in families:
        lines += (f"# HELP {family.name} {family.about}", f"# TYPE {family.name} {family.kind}", *family.lines())
    return "".join(f"{line}\n" for line in lines)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
    return f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}"
