"""Weight formats of linear layers: one object per format, chosen by the setting `quantization`.

The kernels build every linear layer through the format's object, so models do not depend on formats. To add a
format that quantizes float weights while a model is loaded, write a module with its `Quantization` (interface.py),
add it to formats.py, and add its name to `QuantizationName` in shared/settings/fields.py. Kernels that it needs go
to workers/engine/kernels.

Checkpoints that are stored in a format (GPTQ, AWQ, FP8) have other tensors beside or instead of `weight`. Such a
format needs two changes more: `WeightReader.linear` in models/checkpoint.py, the only place where the tensors of a
linear layer are read, passes them to the format, and `_refuse_features` of the model's config accepts its
`quantization_config`.
"""
