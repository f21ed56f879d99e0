"""guidellm: a short benchmark of the chat route."""

import json
import os
import tempfile
from pathlib import Path

from features import KEY, MODEL, URL, feature, main, run_command

REQUESTS = 4
OPTIONS = {
    "--backend": f"kind=openai_http,target={URL},model={MODEL},api_key={KEY}",
    "--profile": "kind=concurrent,streams=2",
    "--constraint": f"kind=max_requests,count={REQUESTS}",
    "--tokenizer": f"kind=hf_auto,model={os.environ['HEADRACE_MODEL_FOLDER']}",
    "--data": "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
    "--output": "kind=json,path=out.json",
}


@feature("a benchmark of streamed chats")
def benchmark():
    words = [word for pair in OPTIONS.items() for word in pair]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "GUIDELLM__MAX_WORKER_PROCESSES": "1"}  # each loads PyTorch
        run_command("guidellm", "run", "--disable-console", *words, cwd=folder, env=environment)
        found = json.loads(Path(folder, "out.json").read_text())["benchmarks"][0]
    totals = found["metrics"]["request_totals"]
    assert totals["successful"] == REQUESTS, totals


main()
