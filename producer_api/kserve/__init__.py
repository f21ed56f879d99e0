"""KServe's Open Inference Protocol (v2), with Triton's extensions: tensors and models in its words.

Both transports use it; only `producer_api.routes` and `producer_api.rpc` import this package.
"""
