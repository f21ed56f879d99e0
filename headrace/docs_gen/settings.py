"""docs/settings.md, generated from the settings: `scripts/settings-doc`."""

from __future__ import annotations

from shared.settings import CONFIG_FILE, ENV_PREFIX, Settings

HEAD = f"""# Settings

Command-line flags take precedence over environment variables, those over `{CONFIG_FILE}` in the current folder (or
the file given with `--config`), and that over the defaults. The environment variable of a setting is `{ENV_PREFIX}`
followed by its name in capitals. An empty value means the default. All values are checked at startup;
`headrace config show` prints each value and its source.

| setting | default | description |
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
