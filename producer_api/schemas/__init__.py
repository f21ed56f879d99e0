"""Request and response bodies that only the front end has: batches, files, dead letters.

`answers` and everything above it import this package; bodies that workers also read are in `shared.schemas`.
"""
