"""The command line: one module per group of commands.

Commands import what they run when they run, so that `headrace --help` stays quick. Nothing imports this package
except the entry point `headrace.__main__`.
"""
