"""What routing costs: judging a message of 1 kB, and choosing its model. `python -m tests.bench routing`."""

import time
from collections.abc import Callable

from spacebot.config.model import AgentSettings
from spacebot.config.routing import RoutingConfig
from spacebot.llm.choice import choose
from spacebot.llm.complexity import classify
from spacebot.llm.messages import ProcessKind
from tests.llm.given import providers

ROUNDS = 1000
MESSAGES = (
    "We have a service that talks to a database and sometimes it is slow; please look what happens and tell me. " * 10,
    "First compare the latency of the protocol with app.py, then refactor the import.\n- at most 3\n- in 20 ms\n" * 11,
)  # fmt: skip


def timed(name: str, reach: str, work: Callable[[], object]) -> None:
    """Print the mean of a thousand rounds."""
    work()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        work()
    print(f"{name}: {(time.perf_counter() - began) / ROUNDS * 1000:.3f} ms (reach {reach})")


def main() -> None:
    """Print the figures."""
    settings = AgentSettings(routing=RoutingConfig.model_validate({"prompt_routing": {"enabled": True}}))
    scored, llm = settings.routing.prompt_routing, providers("anthropic")
    for name, text in zip(("plain", "technical"), (text[:1000] for text in MESSAGES), strict=True):
        timed(f"complexity of a {name} message of 1 kB", "0.2 ms", lambda text=text: classify(scored, [text]))  # type: ignore[misc]
    found = classify(scored, ["hello"])
    timed(
        "choice of a model by its tier", "-",
        lambda: choose(ProcessKind.CHANNEL, None, settings, llm, complexity=found),
    )  # fmt: skip


if __name__ == "__main__":
    main()
