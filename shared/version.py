"""Version of Headrace; `pyproject.toml` reads it from here.

Installed metadata would not do: a worker may run from a source tree, in another environment than the API.
"""

VERSION = "0.1.0"
