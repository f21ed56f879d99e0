"""Bodies of requests and answers, shared by the front end, Kafka and `headrace batch`.

`openai` has the bodies of OpenAI's API, `native` those of Headrace's own. `shared.validation` checks their ranges.
"""
