"""docs/settings.md, generated from the settings: `scripts/settings-doc`."""

from __future__ import annotations

from shared.settings import CONFIG_FILE, ENV_PREFIX, Settings

HEAD = f"""# Settings

Flags of the command line count over the environment, that over `{CONFIG_FILE}` in the current folder (or the file
of `--config`), that over the defaults. A variable is `{ENV_PREFIX}` and the setting's name in capitals. An empty
value means the default. All are checked at the start; `headrace config show` tells each value and its source.

| setting | default | what it is |
| --- | --- | --- |
"""


def render() -> str:
    """Return the page."""
    rows = []
    for name, field in Settings.model_fields.items():
        if field.default_factory is not None:
            default = "the user's " + ("cache" if name == "cache_dir" else "data") + " folder"
        elif name == "redis_url":
            default = "`redis://127.0.0.1:6379/0`; `headrace up` starts its own"
        else:
            default = "" if field.default is None or not str(field.default) else f"`{field.default}`"
        rows.append(f"| `{name}` | {default} | {field.description} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    print(render(), end="")
