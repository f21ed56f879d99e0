"""Weight formats by the values of the setting `quantization`."""

from __future__ import annotations

from collections.abc import Mapping

from shared.settings import QuantizationName
from workers.engine.quantization.int4 import GroupedIntegers
from workers.engine.quantization.int8 import Int8
from workers.engine.quantization.interface import Quantization
from workers.engine.quantization.unquantized import UNQUANTIZED

FORMATS: Mapping[QuantizationName, Quantization] = {"none": UNQUANTIZED, "int8": Int8(), "int4": GroupedIntegers(4)}
