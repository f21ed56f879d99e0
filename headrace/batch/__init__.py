"""Batch runs from the command line: a JSONL file of requests in, a file of results out.

The runner sends lines over HTTP or Kafka and keeps a journal of finished lines, so that an interrupted run resumes
without a lost or repeated line. Only `headrace.cli` and `headrace.bench` import it.
"""
