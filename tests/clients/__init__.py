"""Real clients, unmodified, against a real server: `scripts/test-clients`.

Each client is a program in `programs/` that runs in an environment of its own and reports one line of JSON for each
feature it tried. `docs/clients.md` is written from the reports.
"""
