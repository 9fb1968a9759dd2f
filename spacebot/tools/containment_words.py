"""What a worker is told about its reach: what is true now, or that nothing holds.

Floor:  tools
Source: tools spec 15 (claim nothing when containment is inactive); control spec 6.4
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spacebot.config.hands import ExecRule, Permissions, Reach
from spacebot.tools.paths_policy import Access, PathPolicy
from spacebot.tools.permissions import Gate, Right


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What holds for a worker.

    Args:
        trouble: why commands are not contained although the owner wants it; empty when they are.
        temporary: where commands put what need not stay.
        kept: folders below writable ones that are read-only.
        own: folders of the program, out of bounds wherever everything else is open.
    """

    is_enabled: bool
    trouble: str
    files: PathPolicy
    commands: PathPolicy
    gate: Gate
    temporary: Path
    kept: Sequence[Path]
    own: Path

    def words(self) -> str:
        """For a worker's prompt: real lists, or that there is no containment."""
        return " ".join((*self._reached(), *self._denied()))

    def _reached(self) -> Iterator[str]:
        if not self.is_enabled:
            yield "Containment is inactive (switched off by the owner): commands and the file tool reach every path."
            return
        permissions = self.gate.permissions
        if self.trouble:
            yield f"Containment of commands is inactive ({self.trouble}): they run with all rights of the"
            yield "program's user."
        else:
            own = f"{self.temporary} (yours alone, gone when you end)"
            writable = ", ".join((*self._writable(self.commands), own))
            readable = ", ".join((*_tops(self.commands, Access.READ), *_tops(self.commands, Access.SYSTEM)))
            yield f"Commands run in a sandbox. They may write: {writable}."
            yield f"They may read besides: {readable or 'nothing'}."
            network = "open" if permissions.network_outbound else "closed"
            yield f"No other path exists for them; the network is {network}."
        writable = ", ".join(self._writable(self.files))
        yield f"The file tool writes below: {writable}." if writable else "The file tool writes nothing."
        if readable := ", ".join(_tops(self.files, Access.READ)):
            yield f"It reads besides: {readable}."
        yield from self._exactly(permissions)
        if Reach.ALLOW in (permissions.file_read, permissions.file_write, permissions.shell):
            yield f"Out of bounds is {self.own}, the program's own folder, apart from your workspace."

    def _writable(self, policy: PathPolicy) -> list[str]:
        """Folders that may be written in; what is read-only in one is named with it."""
        found: list[str] = []
        for top in _tops(policy, Access.WRITE):
            kept = " and ".join(str(path) for path in self.kept if path.is_relative_to(top))
            found.append(f"{top} (except below {kept})" if kept else top)
        return found

    def _exactly(self, permissions: Permissions) -> Iterator[str]:
        for verb, value in (("reads", permissions.file_read), ("writes", permissions.file_write)):
            if not isinstance(value, Reach):
                yield f"Beside the workspace it {verb} only what fits {', '.join(value)}."

    def _denied(self) -> Iterator[str]:
        permissions = self.gate.permissions
        if denied := [str(right) for right in Right if not self.gate.allows(right)]:
            yield f"Denied to you by the owner: {', '.join(denied)}; a call only tells why."
        if permissions.exec is ExecRule.ALLOWLIST:
            yield f"exec starts only these programs: {', '.join(permissions.exec_allowlist) or 'none'}."


def _tops(policy: PathPolicy, access: Access) -> list[str]:
    """Folders with exactly this access which exist, without those in another one of the list."""
    tops: list[Path] = []
    for area in policy.areas:  # shorter paths come first
        if area.access is access and area.path.exists() and not any(area.path.is_relative_to(top) for top in tops):
            tops.append(area.path)
    return [str(path) for path in tops]
