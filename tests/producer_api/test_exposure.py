"""Addresses that the API may listen on without authentication."""

from __future__ import annotations

import pytest

from headrace.doctor.checks import examine
from producer_api.server import bind, listen
from shared.errors import ConfigError
from shared.runtime.bind_safety import check_exposure, loopback
from shared.settings import Loaded, Settings, load


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert loopback(host)
    check_exposure(load({"host": host, "admin_host": host, "admin_port": 0}).settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "no.such.name.invalid"])
def test_a_public_address_needs_keys(host: str) -> None:
    with pytest.raises(ConfigError, match=r"auth = true.*headrace keys create.*insecure = true") as refusal:
        listen(load({"host": host, "port": 0}).settings)
    assert refusal.value.param == "host"
    for way in ("auth", "insecure"):
        check_exposure(load({"host": host, way: True}).settings)
    with pytest.raises(ConfigError, match="admin_host"):
        check_exposure(load({"admin_host": host, "admin_port": 0}).settings)
    check_exposure(load({"admin_host": host}).settings)  # there is no admin port


def test_an_empty_address_is_not_loopback() -> None:
    """A socket bound to it listens on all addresses; as a setting, an empty text means the default."""
    assert not loopback("")
    assert load({"host": ""}).settings.host == "127.0.0.1"


def test_the_admin_port_names_its_settings() -> None:
    with bind(load({"admin_port": 0}).settings, "admin_host", "admin_port") as listener:
        taken = load({"admin_port": listener.getsockname()[1]}).settings
        with pytest.raises(ConfigError, match="admin_port"):
            bind(taken, "admin_host", "admin_port")


@pytest.mark.parametrize(
    ("given", "status", "remedy"),
    [
        ({"host": "0.0.0.0"}, {"authentication": "failed", "key pepper": "ok"}, "auth"),
        ({"host": "0.0.0.0", "insecure": True}, {"authentication": "warning", "key pepper": "ok"}, "auth"),
        ({"auth": True, "host": "0.0.0.0"}, {"authentication": "ok", "key pepper": "ok"}, ""),
        ({"auth": True, "key_pepper": "short"}, {"authentication": "ok", "key pepper": "failed"}, "security"),
        (
            {"auth": True, "database_url": "postgresql://db/x"},
            {"authentication": "ok", "key pepper": "failed"},
            "security",
        ),
    ],
)
def test_the_doctor_reports_open_settings(
    settings: Settings, given: dict[str, object], status: dict[str, str], remedy: str
) -> None:
    examined = load({"data_dir": settings.data_dir, "model": "scripted", **given})
    findings = {each.what: each for each in examine(Loaded(examined.settings, examined.origin))}
    assert {what: findings[what].status for what in status} == status
    assert any(remedy in findings[what].remedy for what in status)
    assert not settings.data_dir.exists()
