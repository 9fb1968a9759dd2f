"""How the cortex tends the memory: links caught up on, contradictions judged, maintenance.

    association    some minutes after a save; once after the start
    contradiction  a back-fill looked at something new and pairs wait for a verdict; at most one question an hour
    maintenance    an hour after the last when something was saved, changed or recalled, else a day after it

Flow:    event -> Duty.due_s -> Duty.run -> AgentMemory.associate, judge, maintain
Floor:   agent
Source:  memory spec 6 and 9.4, pitfalls P-20, P-21, P-37; process spec P48
"""

from collections import Counter
from collections.abc import Callable

from spacebot.agent.bulletin import is_upkeep
from spacebot.agent.duties import DAY_S, Desk, is_wish, nobody
from spacebot.agent.observation import PAIRS_READ, batch_of, pairs_for_template, parse_verdicts
from spacebot.base.clock import from_text, monotonic_s
from spacebot.base.errors import NotFoundError
from spacebot.base.events import EventKind, ProcessEvent
from spacebot.config.model import CortexConfig
from spacebot.memory.association import AssociationPolicy, Verdict
from spacebot.memory.linking import LinkPolicy
from spacebot.memory.maintenance import MaintenancePolicy

START_S = 10.0  # after the start, the first look at what was left
QUESTION_S = 3600.0  # between two questions about contradictions
VERDICT_TRIES = 2  # answers that may leave a pair out before it is left alone
PASS_LEAST_S, PASS_MOST_S = 300.0, 3600.0  # limit of a maintenance, which is six intervals between these
MAINTAINED_KEY = "cortex.maintained_at"


def maintenance_policy(config: CortexConfig) -> MaintenancePolicy:
    """The numbers of a pass, as the configuration has them."""
    return MaintenancePolicy(
        decay_rate=config.maintenance_decay_rate,
        prune_threshold=config.maintenance_prune_threshold,
        min_age_days=config.maintenance_min_age_days,
        merge_similarity=config.maintenance_merge_similarity_threshold,
        time_limit_s=min(max(6 * config.maintenance_interval_secs, PASS_LEAST_S), PASS_MOST_S),
    )


class AssociationDuty:
    """Catches up on the edges that saves could not make."""

    name = "association"
    limit_s: float | None = None

    def __init__(self, desk: Desk, contradiction: "ContradictionDuty") -> None:
        self.stir: Callable[[], None] = nobody
        self._desk = desk
        self._contradiction = contradiction
        self._at: float | None = None

    async def open(self) -> None:
        """Go on soon where the last life left off."""
        self._at = monotonic_s() + START_S

    def noticed(self, event: ProcessEvent) -> bool:
        """Something was saved, changed or brought back."""
        if event.kind is not EventKind.MEMORY_SAVED and not is_wish(event):
            return False
        if self._at is None:
            self._at = monotonic_s() + self._desk.config.association_interval_secs
        return True

    def due_s(self) -> float | None:
        """An interval after the first save that no pass has seen."""
        return None if self._at is None else self._at - monotonic_s()

    async def run(self) -> None:
        """One pass. Errors: StorageError, RefusedError."""
        config, at = self._desk.config, self._at
        links = LinkPolicy(
            related=config.association_similarity_threshold, updates=config.association_updates_threshold
        )
        self._at = None
        try:
            report = await self._desk.parts.memory.associate(
                AssociationPolicy(links=links, max_new=config.association_max_per_pass)
            )
        except BaseException:
            self._at = at
            raise
        if not report.is_complete and self._at is None:
            self._at = monotonic_s() + config.association_interval_secs
        if report.created:
            self._desk.tell("association_created", f"{report.created} links between memories")
        if report.looked_at:
            self._contradiction.ask_for()


class ContradictionDuty:
    """Lets a model judge pairs of similar memories that say different things.

    One question for each back-fill that found something new, at most one an hour: an import can leave thousands of
    pairs, and a store in which nothing is said any more must not go on asking.
    """

    name = "contradiction"
    limit_s: float | None = None

    def __init__(self, desk: Desk) -> None:
        self.stir: Callable[[], None] = nobody
        self._desk = desk
        self._is_wanted = False
        self._not_before = 0.0
        self._tries: Counter[tuple[str, str]] = Counter()

    async def open(self) -> None:
        """Pairs that wait since the last life go on waiting for the next save."""

    def noticed(self, event: ProcessEvent) -> bool:
        """Nothing on the bus: saves and the back-fill find pairs, and the back-fill follows each save."""
        return False

    def ask_for(self) -> None:
        """There may be new pairs."""
        self._is_wanted = True
        self.stir()

    def due_s(self) -> float | None:
        """At once, but for the pause after the last question."""
        return self._not_before - monotonic_s() if self._is_wanted else None

    async def run(self) -> None:
        """Judge one batch, with one model call. Errors: ModelError, StorageError."""
        memory = self._desk.parts.memory
        batch = batch_of(await memory.candidates_for_contradiction(PAIRS_READ))
        if not batch:
            self._is_wanted = False
            return
        prompt = self._desk.parts.prompts.render(
            "fragments/contradictions", pairs=pairs_for_template(batch, self._desk.parts.zone)
        )
        reply = await self._desk.ask(self.name, "CORTEX_JUDGE", prompt)
        self._is_wanted, self._not_before = False, monotonic_s() + QUESTION_S
        verdicts = parse_verdicts(reply.message.text, len(batch))
        for number, pair in enumerate(batch, start=1):
            key = (pair.newer.id, pair.older.id)
            self._tries[key] += 1
            verdict = verdicts.get(number, Verdict.NEITHER if self._tries[key] >= VERDICT_TRIES else None)
            if verdict is None:
                continue
            del self._tries[key]
            try:
                await memory.judge(pair, verdict)
            except NotFoundError:
                continue  # forgotten or judged meanwhile
        self._desk.tell("contradiction_judged", f"{len(verdicts)} of {len(batch)} pairs of memories judged")


class MaintenanceDuty:
    """Renews importance, prunes, merges, tends the vector table."""

    name = "maintenance"

    def __init__(self, desk: Desk) -> None:
        self.stir: Callable[[], None] = nobody
        self._desk = desk
        self._has_changed = False
        self._last_at = monotonic_s()

    @property
    def limit_s(self) -> float | None:
        """Seconds that a pass may take: its own limit, and some time to end in good order."""
        return maintenance_policy(self._desk.config).time_limit_s + 30.0

    async def open(self) -> None:
        """Count from the last pass, whenever it was."""
        if at := await self._desk.settings.get(MAINTAINED_KEY):
            self._last_at = monotonic_s() - self._desk.age_s(from_text(at), DAY_S)

    def noticed(self, event: ProcessEvent) -> bool:
        """Something was saved, changed, or is about to be recalled."""
        if event.kind is EventKind.CONFIG_RELOADED:
            return True
        is_new = not self._has_changed
        self._has_changed = self._has_changed or not is_upkeep(event)
        return is_new and self._has_changed

    def due_s(self) -> float | None:
        """An interval after the last pass when something changed; a day after it in any case, because time decays."""
        pause_s = self._desk.config.maintenance_interval_secs if self._has_changed else DAY_S
        return self._last_at + max(pause_s, self._desk.config.maintenance_interval_secs) - monotonic_s()

    async def run(self) -> None:
        """One pass. Errors: StorageError, RefusedError."""
        desk, config = self._desk, self._desk.config
        if not self._has_changed and not (await desk.parts.memory.stats()).total:
            self._last_at = monotonic_s()  # nothing to decay
            return
        had_changed, self._has_changed = self._has_changed, False
        try:
            report = await desk.parts.memory.maintain(
                maintenance_policy(config),
                on_progress=lambda progress: desk.node.progress(f"maintenance: {progress.step}"),
            )
        except BaseException:
            self._has_changed = had_changed
            raise
        self._last_at = monotonic_s()
        self._has_changed = self._has_changed or not report.is_complete
        await desk.settings.set(**{MAINTAINED_KEY: desk.parts.clock.text()})
        desk.tell(
            "maintenance_completed" if report.is_complete else "maintenance_interrupted",
            f"{report.pruned} pruned, {report.merged} merged, {report.decayed} decayed",
        )
