"""Loading needs only the memory of the mapped weights and their packed copy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkpoints import CONFIGS
from tests.support.waiting import LIMIT_S

LOAD = """
import json, re, sys
from pathlib import Path
import torch
from workers.engine.config import EngineConfig
from workers.engine.kernels.select import choose_kernels
from workers.engine.models.loader import load_model, read_model_config

def resident(what):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\\s+(\\d+) kB", status).group(1)) * 1024

config = EngineConfig(Path(sys.argv[1]), quantization=sys.argv[2])
kernels = choose_kernels(config, torch.device("cpu"), torch.float32)
kernels.linear([torch.ones(8, 8)], None)(torch.ones(2, 8))
Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which a process inherits from its parent
before = resident("VmRSS")
model = load_model(config.model, read_model_config(config.model), dtype=torch.float32, device=torch.device("cpu"),
                   max_model_len=512, kernels=kernels, progress=lambda share: None)
print(json.dumps(resident("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "packed"), [("none", 1.0), ("int8", 0.25), ("int4", 0.16)])
def test_peak_memory_while_loading(smollm2: Path, quantization: str, packed: float) -> None:
    """The peak, which includes mapped pages, is at most 1.3 times the weights plus the packed copy."""
    weights = (smollm2 / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", LOAD, str(smollm2), quantization]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    peak = json.loads(done.stdout.splitlines()[-1])
    assert 0.2 * weights < peak <= (1.3 + packed) * weights, f"{peak / weights:.2f} times the weights"


COMPILER = """
import sys
from pathlib import Path
import torch
from workers.engine.kernels.torch_kernels import TorchKernels
from workers.engine.models.loader import load_model, read_model_config

for folder in map(Path, sys.argv[1:]):
    load_model(folder, read_model_config(folder), TorchKernels(), dtype=torch.float32, device=torch.device("cpu"),
               max_model_len=64, progress=lambda share: None)
    if "torch._dynamo" in sys.modules:
        sys.exit(f"{folder.name} imported torch's compiler")
"""


@pytest.mark.slow
def test_loading_needs_no_compiler(checkpoints: Callable[[str], Path]) -> None:
    """torch's compiler takes a second and 150 MB; some operations on the device meta import it."""
    folders = [str(checkpoints(name)) for name in CONFIGS]
    command = [sys.executable, "-c", COMPILER, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-500:]
