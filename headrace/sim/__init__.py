"""`headrace sim`: discrete-event models of an installation, fed by measured times.

`simulation.py` runs arrivals (`arrivals.py`) through a queue and workers (`worker.py`), whose number an autoscaler
(`hpa.py`, `keda.py`) decides; `outcome.py` has the figures, `comparison.py` compares autoscalers, and `plot.py`
draws them. Only `headrace.cli` and tests import it.
"""
