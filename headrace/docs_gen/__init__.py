"""Generators of the reference pages: settings and Kafka records, from the code that declares them.

The scripts `scripts/settings-doc` and `scripts/kafka-doc` run them; nothing else imports this package.
"""
