"""The doctor: everything that tends to go wrong for a newcomer, looked at one by one, each with its mend.

A check asks the thing itself (starts the sandbox, reads the database, binds the port) and never fails: what it cannot
look at is said, too. It works beside a running program and without one.

Flow:    Scene -> examine -> Finding, Finding, … -> `spacebot doctor`, GET /api/system/doctor
Floor:   agent
Source:  control spec 6.4, 8.1
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import trio

from spacebot import __version__
from spacebot.base.errors import SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.base.redaction import scrub
from spacebot.config.model import Config

PATIENCE_S = 60.0  # for one check: a large database, a library that is loaded for the first time
AT_ONCE = 4  # threads


class Grade(StrEnum):
    """How something is."""

    OK = "ok"
    WARN = "warn"  # it works, or is not needed, but somebody should know
    FAIL = "fail"  # something will not work


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found: one line, and what to do when it is not well."""

    check: str
    grade: Grade
    said: str
    mend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the checks look at.

    Args:
        config: None when the file is broken; `trouble` then says why.
        warnings: of the configuration and the secret store.
        status: the running program's own words (`status` of the control socket); None without one.
        pid: of the running program, also of one that does not answer.
        secrets: how the store stands: state, key, problem.
        environ: of the program that asks.
    """

    paths: InstancePaths
    config: Config | None
    trouble: str = ""
    warnings: Sequence[str] = ()
    status: Mapping[str, Any] | None = None
    pid: int | None = None
    secrets: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Whether a program serves this instance."""
        return self.pid is not None or self.status is not None


Blocking = Callable[[Scene], Iterable[Finding]]
Asking = Callable[[Scene], Awaitable[Iterable[Finding]]]


class Report:
    """Says what a check finds, under its name."""

    def __init__(self, check: str) -> None:
        self._check = check

    def ok(self, said: str) -> Finding:
        """All is well."""
        return Finding(check=self._check, grade=Grade.OK, said=said)

    def warn(self, said: str, mend: str) -> Finding:
        """Somebody should know."""
        return Finding(check=self._check, grade=Grade.WARN, said=said, mend=mend)

    def fail(self, said: str, mend: str) -> Finding:
        """Something will not work."""
        return Finding(check=self._check, grade=Grade.FAIL, said=said, mend=mend)


async def examine(
    scene: Scene, blocking: Mapping[str, Blocking], asking: Mapping[str, Asking] | None = None
) -> list[Finding]:
    """Run checks side by side; the findings come in the order of the checks, the blocking ones first.

    Args:
        blocking: run in threads, by name.
        asking: run on the loop, by name.

    Cancel: threads are left to end by themselves.
    """
    asking = asking or {}
    found: dict[str, list[Finding]] = {name: [] for name in (*blocking, *asking)}
    limiter = trio.CapacityLimiter(AT_ONCE)

    async def look(name: str, check: Callable[[], Awaitable[list[Finding]]]) -> None:
        try:
            with trio.fail_after(PATIENCE_S):
                found[name] = await check()
        except trio.TooSlowError:
            found[name] = [_unseen(name, f"took longer than {PATIENCE_S:.0f} s")]
        except SpacebotError as error:
            found[name] = [_unseen(name, str(error))]
        except Exception as error:  # boundary: tool (a check that fails is a finding, not the end of all others)
            found[name] = [_unseen(name, f"{type(error).__name__}: {error}")]

    async with trio.open_nursery() as nursery:
        for name, check in blocking.items():
            nursery.start_soon(look, name, _in_thread(check, scene, limiter))
        for name, question in asking.items():
            nursery.start_soon(look, name, _on_loop(question, scene))
    return [
        Finding(**{**asdict(finding), "said": scrub(finding.said), "mend": scrub(finding.mend)})
        for findings in found.values()
        for finding in findings
    ]


def _in_thread(check: Blocking, scene: Scene, limiter: trio.CapacityLimiter) -> Callable[[], Awaitable[list[Finding]]]:
    async def run() -> list[Finding]:
        return await trio.to_thread.run_sync(lambda: list(check(scene)), limiter=limiter, abandon_on_cancel=True)

    return run


def _on_loop(question: Asking, scene: Scene) -> Callable[[], Awaitable[list[Finding]]]:
    async def run() -> list[Finding]:
        return list(await question(scene))

    return run


def _unseen(name: str, why: str) -> Finding:
    words = " ".join(why.split())[:300]
    return Finding(
        check=name, grade=Grade.WARN, said=f"could not be looked at: {words}", mend="look at it by hand, or try again"
    )


def summary(findings: Iterable[Finding]) -> dict[str, Any]:
    """The findings for programs; `ok` is false when something fails."""
    rows = [asdict(finding) for finding in findings]
    counts = {str(grade): sum(row["grade"] == grade for row in rows) for grade in Grade}
    return {"ok": not counts["fail"], "version": __version__, "counts": counts, "findings": rows}
