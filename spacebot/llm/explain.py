"""Which model would answer a text, and why: the four levels written out for people.

Flow:   `route explain`, POST /api/route/explain -> explain -> RouteExplanation
Floor:  llm; may import base, config
Source: control spec 2.4 to 2.7
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spacebot.base.errors import ModelRejectedError
from spacebot.config.model import AgentSettings, LlmConfig
from spacebot.llm.choice import Choice, Obstacle, choose, targets_of
from spacebot.llm.complexity import Complexity, classify
from spacebot.llm.messages import ProcessKind
from spacebot.llm.profiles import FreeModels, no_free_models
from spacebot.llm.routing import is_rerouted, resolve

Cooling = Callable[[str], float]  # seconds that a model, by full name, is still left alone


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStep:
    """One model in the order in which they are asked.

    Args:
        written: as the route names it.
        model: full name of what is really asked; None where that cannot be.
        note: what is special about it, for people.
    """

    written: str
    model: str | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteExplanation:
    """The whole answer. `complexity` is None where words are not scored."""

    process: ProcessKind
    task_type: str | None
    choice: Choice
    complexity: Complexity | None
    is_scored: bool  # whether the score may choose the model of this process
    steps: tuple[RouteStep, ...]

    def to_json_object(self) -> dict[str, Any]:
        """Plain values."""
        found = self.complexity
        return {
            "process": str(self.process),
            "task_type": self.task_type,
            "model": next((step.model for step in self.steps if step.model is not None), None),
            "level": str(self.choice.level),
            "default": self.choice.default,
            "tier": None if self.choice.tier is None else str(self.choice.tier),
            "notes": list(self.choice.notes),
            "is_scored": self.is_scored,
            "complexity": None
            if found is None
            else {
                "score": found.score,
                "tier": str(found.tier),
                "values": dict(found.values),
                "signs": {name: list(signs) for name, signs in found.signs.items()},
                "guards": list(found.guards),
            },
            "steps": [asdict(step) for step in self.steps],
        }


def explain(
    texts: Sequence[str],
    process: ProcessKind,
    settings: AgentSettings,
    llm: LlmConfig,
    *,
    task_type: str | None = None,
    has_attachments: bool = False,
    cooling: Cooling = lambda model: 0.0,
    free: FreeModels = no_free_models,
) -> RouteExplanation:
    """Go through the levels as a call would, and keep what each said. Scores also where that decides nothing."""
    scored = settings.routing.prompt_routing
    complexity = classify(scored, texts, has_attachments=has_attachments)
    choice = choose(
        process, task_type, settings, llm,
        complexity=complexity, free=free,
        obstacle=lambda target: Obstacle.COOLING if cooling(target.model) > 0 else None,
    )  # fmt: skip
    return RouteExplanation(
        process=process,
        task_type=task_type,
        choice=choice,
        complexity=complexity,
        is_scored=scored.enabled and process.value in scored.process_types,
        steps=tuple(_steps(choice, process, settings, llm, cooling)),
    )


def _steps(
    choice: Choice, process: ProcessKind, settings: AgentSettings, llm: LlmConfig, cooling: Cooling
) -> list[RouteStep]:
    try:
        asked = {target.model for target in targets_of(choice, process, settings.routing, llm)}
    except ModelRejectedError:
        asked = set()
    steps = []
    for name in choice.names:
        try:
            target = resolve(name, llm)
        except ModelRejectedError as error:
            steps.append(RouteStep(written=name, model=None, note=str(error)))
            continue
        notes = [f"reached through {target.provider}"] if is_rerouted(name, target) else []
        if (left := cooling(target.model)) > 0:
            notes.append(f"left alone for {left:.0f} s more, its provider was too busy")
        if asked and target.model not in asked:
            notes.append("not asked: the chain is too long")
        steps.append(RouteStep(written=name, model=target.model, note="; ".join(notes)))
    return steps
