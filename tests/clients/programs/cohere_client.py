"""cohere, Cohere's Python client: documents ranked by both versions of its API."""

import cohere
from features import EMBEDDER, KEY, URL, feature, main

DOCUMENTS = ["The court adjourned until Monday.", "Water turns the wheel of a mill."]
QUERY = "What drives a mill?"


@feature("rerank (v1)")
def rerank_first_version():
    client = cohere.Client(base_url=URL, api_key=KEY)
    answer = client.rerank(model=EMBEDDER, query=QUERY, documents=DOCUMENTS, top_n=1, return_documents=True)
    assert [(each.index, each.document.text) for each in answer.results] == [(1, DOCUMENTS[1])]


@feature("rerank (v2)")
def rerank():
    client = cohere.ClientV2(base_url=URL, api_key=KEY)
    answer = client.rerank(model=EMBEDDER, query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=64)
    assert [each.index for each in answer.results] == [1, 0]
    assert answer.results[0].relevance_score > answer.results[1].relevance_score


@feature("errors")
def refused():
    client = cohere.ClientV2(base_url=URL, api_key=KEY)
    try:
        client.rerank(model=EMBEDDER, query=QUERY, documents=[])
    except cohere.BadRequestError as error:
        assert error.body["error"]["param"] == "documents", error.body
    else:
        raise AssertionError("no error was raised")


main()
