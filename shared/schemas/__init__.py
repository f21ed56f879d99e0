"""Bodies of requests and answers that both the front end and other ways in use.

`openai` has the shapes of OpenAI's API, `native` our own. They validate through `shared.validation`.
"""
