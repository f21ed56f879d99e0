from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from headrace.launcher.supervisor import Supervisor
from headrace.launcher.up import Up
from shared.errors import ConfigError
from shared.runtime.sockets import free_port
from shared.settings import load

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the signal handlers that `run` replaces."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_during_the_stop_hastens_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Given a start that failed, if a signal arrives while the processes stop, they are killed, and `run` ends."""
    hastened = []

    def stop(_: Supervisor, grace: float, kill_now: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        hastened.append(kill_now())

    monkeypatch.setattr(Supervisor, "stop", stop)
    settings = load({"model": "scripted", "data_dir": tmp_path, "min_workers": 2}).settings
    with pytest.raises(ConfigError, match="min_workers"):
        Up(settings, own_server=True, verbose=False, console=Console(quiet=True)).run()
    assert hastened == [True]


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("setting", ["admin_port", "grpc_port"])
def test_a_port_of_two_servers_is_refused_by_its_setting(tmp_path: Path, setting: str) -> None:
    port = free_port("127.0.0.1")
    flags = {"model": "scripted", "data_dir": tmp_path, "port": port, setting: port}
    settings = load(flags).settings
    with pytest.raises(ConfigError, match=f"^{setting} {port} is the port of another server") as refused:
        Up(settings, own_server=True, verbose=False, console=Console(quiet=True)).run()
    assert refused.value.param == setting
