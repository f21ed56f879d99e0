"""Weight formats of linear layers: one object per format, chosen by the setting `quantization`.

The kernels import this package.
"""
