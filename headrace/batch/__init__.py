"""`headrace batch`: a file of requests in, a file of results out, from the side of a client.

It knows the HTTP API, or Kafka's topics, alone: nothing of Redis or of engines.
"""
