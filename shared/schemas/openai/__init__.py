"""Bodies in the shape of OpenAI's API: chat, completions, embeddings and responses.

`producer_api` and `headrace` import this package.
"""
