"""Weight formats of linear layers: one object per format, chosen by the setting `quantization`.

The kernels build every linear layer through the format's object, so models do not depend on formats. To add a
format that quantizes float weights while a model is loaded, write a module with its `Quantization` (interface.py),
add it to formats.py, and add its name to `QuantizationName` in shared/settings/engine_fields.py. Kernels that it
needs go to workers/engine/kernels.

Formats in which checkpoints store their weights (GPTQ, AWQ, FP8) are in models/stored; integers in groups become
`GroupedWeight` (grouped_weight.py), for which every kind of kernels has a layer.
"""
