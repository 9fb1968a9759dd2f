"""Words to the service manager, received on a real socket."""

import os
import socket
from pathlib import Path

from spacebot.base.notify import Notifier


def test_the_manager_hears_ready_reloading_stopping_and_alive(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
        assert notifier.ready("model demo/demo")
        assert notifier.reloading()
        assert notifier.alive()
        assert notifier.stopping()
        heard = [manager.recv(500).decode() for _ in range(4)]

    assert heard[0] == "READY=1\nSTATUS=model demo/demo"
    assert heard[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert heard[2:] == ["WATCHDOG=1", "STOPPING=1"]


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    assert not Notifier.from_environment({}).ready()
    assert not Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_the_watchdog_counts_only_when_it_is_meant_for_this_process() -> None:
    assert Notifier.from_environment({"WATCHDOG_USEC": "30000000"}).watchdog_s == 30
    mine = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(mine).watchdog_s == 30
    assert Notifier.from_environment(mine | {"WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier.from_environment({"WATCHDOG_USEC": "soon"}).watchdog_s is None
