"""The command line with something small in place of the program; files in the instance directory change its ways.

fail          it cannot start; the file's text is the reason
crash         it dies without a word
stuck         it does not end when it is asked to
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from spacebot.cli.main import main


class Info(NamedTuple):
    urls: tuple[str, ...]
    model_label: str


def load_app() -> Any:
    from dataclasses import dataclass, field

    import trio

    from spacebot.api.control import EXIT_RESTART, control_commands, serve_control
    from spacebot.base.clock import monotonic_s
    from spacebot.base.errors import ConfigError
    from spacebot.base.ids import new_uuid
    from spacebot.base.paths import InstancePaths
    from spacebot.base.tree import NodeKind
    from spacebot.config.store import ConfigStore
    from spacebot.conversations.records import Accepted
    from spacebot.storage.live_secrets import LiveSecrets
    from tests.fakes.fake_program import FakeProgram, open_fake_program

    @dataclass
    class Stoppable:
        inner: FakeProgram
        stop: trio.Event = field(default_factory=trio.Event)
        wants_restart: bool = False

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def request_stop(self, *, restart: bool = False) -> None:
            self.wants_restart = restart
            self.stop.set()

    async def app(
        paths: InstancePaths,
        store: ConfigStore,
        secrets: LiveSecrets,
        *,
        on_ready: Callable[[Info], None],
        debug: bool,
    ) -> int:
        if (paths.root / "fail").exists():
            raise ConfigError((paths.root / "fail").read_text())
        if (paths.root / "bug").exists():
            raise ZeroDivisionError
        if (paths.root / "crash").exists():
            os._exit(9)
        async with open_fake_program(paths.root) as inner, trio.open_nursery() as nursery:
            program = Stoppable(inner)
            agent = inner.main

            async def answer(message: Any, accepted: Any) -> None:
                if "slow" in message.text:
                    await trio.sleep(1)
                async with agent.turn(message.conversation_id, accepted) as turn:
                    await turn.say(f"you said: {message.text}")

            agent.on_message = answer
            for left in (await agent.conversations.recover()).messages:
                nursery.start_soon(answer, left.message, Accepted(message_id=left.id, seq=left.seq, is_new=False))
            commands = control_commands(
                program,
                tree=inner.tree,
                events=inner.events,
                store=store,
                secrets=secrets,
                run_id=new_uuid(),
                started_at=monotonic_s(),
                urls=("http://127.0.0.1:1/",),
            )
            await nursery.start(serve_control, paths.socket, commands)
            on_ready(Info(("http://127.0.0.1:1/",), "demo/demo"))
            await program.stop.wait()
            if (paths.root / "stuck").exists():
                inner.tree.add(NodeKind.WORKER, "endless work")
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        return EXIT_RESTART if program.wants_restart else 0

    return app


def command() -> list[str]:
    return [sys.executable, str(Path(__file__).resolve())]


if __name__ == "__main__":
    sys.exit(main(load_app=load_app, command=command))
