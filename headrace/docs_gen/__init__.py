"""Generators of reference documentation: settings, parameters and Kafka records, from the code that declares them.

`scripts/settings-doc`, `scripts/parameters-doc` and `scripts/kafka-doc` run them; no other code imports this
package.
"""
