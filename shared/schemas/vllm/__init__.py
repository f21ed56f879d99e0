"""Request and response bodies of vLLM's APIs of models that do not generate."""
