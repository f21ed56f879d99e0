"""Traces: the trace context of requests, and the spans that processes export to an OpenTelemetry collector.

Every package may import this one. Only `otel` imports OpenTelemetry, and only where tracing is on.
"""
