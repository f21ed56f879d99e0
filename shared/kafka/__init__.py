"""Requests and results as records of Kafka: names, connection, format. Who moves them is not known here."""
