"""`headrace kafka`: requests into Kafka's topics and results out of them, from the side of a client."""
