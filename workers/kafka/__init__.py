"""A worker's second way in: requests from Kafka's topics into the model's lanes, and their results back."""
