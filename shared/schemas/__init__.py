"""What a request's submission and its result look like, the same on HTTP, in Kafka and in a batch's lines."""
