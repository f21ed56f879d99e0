"""URL of Celery's broker. This module does not import Celery, so that the launcher can use it."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from shared.errors import ConfigError
from shared.redis.url import RedisURL
from shared.settings import Settings


def broker_url(settings: Settings) -> str:
    """Return the broker URL of the settings, as Celery takes it. Raises ConfigError if Celery cannot use it."""
    if settings.tasks_broker_url is not None:
        return settings.tasks_broker_url.get_secret_value()
    given = settings.redis_url.get_secret_value()
    url = RedisURL.parse(given)
    if url.kind == "server":
        return given
    if url.kind == "socket":
        user, password = (quote(str(url.options.get(name, "")), safe="") for name in ("username", "password"))
        at = f"{user}:{password}@" if user or password else ""
        return f"redis+socket://{at}{url.options['path']}?{urlencode({'virtual_host': url.options.get('db', 0)})}"
    raise ConfigError(
        f"redis_url is a Redis {url.kind}, which Celery cannot use; set tasks_broker_url", param="tasks_broker_url"
    )
