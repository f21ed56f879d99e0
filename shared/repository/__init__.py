"""The model repository: what it says of its models, which of them are loaded, and where their traffic goes.

It is a folder of models that workers serve beside each other, in Triton's layout. Every package may import this
one; it imports `shared.protocol`, `shared.models` and `shared.redis`.
"""
