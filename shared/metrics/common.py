"""Metrics that processes of several kinds have: those of Redis, of Kafka, of the queue and of the GPUs."""

from __future__ import annotations

from shared.metrics.declaration import Declaration

REDIS_ERRORS = Declaration(
    "counter",
    "headrace_redis_errors",
    "Failed calls to Redis, by kind: timeout, connection, refused, or other",
    ("kind",),
)
FOREIGN_ENTRIES = Declaration(
    "counter",
    "headrace_foreign_entries",
    "Entries of another program found in Headrace's Redis keys, and set aside or passed over",
    ("structure",),
)
ROUTED = Declaration(
    "counter", "headrace_routed_requests", "Requests routed, by outcome", ("model", "policy", "outcome")
)
COMMON = (REDIS_ERRORS, FOREIGN_ENTRIES, ROUTED)

GPU_MEMORY = Declaration("gauge", "headrace_gpu_memory_bytes", "Memory of the GPU", ("gpu",))
GPU_MEMORY_USED = Declaration(
    "gauge", "headrace_gpu_memory_used_bytes", "Memory of the GPU that is in use, by any process", ("gpu",)
)
GPU_UTILIZATION = Declaration(
    "gauge", "headrace_gpu_utilization_ratio", "Share of the last moments in which the GPU computed", ("gpu",)
)
GPU = (GPU_MEMORY, GPU_MEMORY_USED, GPU_UTILIZATION)

LAG = Declaration(
    "gauge",
    "headrace_kafka_lag",
    "Records between the watermark and the end of the partition",
    ("topic", "partition"),
)
WATERMARK = Declaration(
    "gauge", "headrace_kafka_watermark", "First offset that is not known to be done", ("topic", "partition")
)
IN_FLIGHT = Declaration("gauge", "headrace_kafka_in_flight", "Records taken and not yet done")
RESULTS = Declaration("counter", "headrace_kafka_results", "Results written")
DEAD_RECORDS = Declaration(
    "counter", "headrace_kafka_dead_letters", "Records written to the dead-letter topic", ("code",)
)
KAFKA_ERRORS = Declaration("counter", "headrace_kafka_errors", "Failed calls to the brokers")
KAFKA = (LAG, WATERMARK, IN_FLIGHT, RESULTS, DEAD_RECORDS, KAFKA_ERRORS)
