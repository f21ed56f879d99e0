"""Command line: one module per command or group of commands, registered in `main.py`.

A command imports what it runs only when it runs, so that `headrace --help` stays fast. Only `headrace.__main__`
imports this package.
"""
