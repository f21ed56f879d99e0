"""GGUF files: their configuration, tokenizer and tensors in the forms that Hugging Face's checkpoints have.

`python -m workers.engine.models.gguf FILE.gguf FOLDER` writes a model folder around a file, with a link to it.
"""
