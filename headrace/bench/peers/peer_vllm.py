"""`PYTHON -m headrace.bench.peers.peer_vllm FOLDER SEED CONCURRENCY`: vLLM on the mix, compiled, figures as JSON.

It runs in vLLM's own environment (scripts/peers), so it imports only light modules of this repository.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.workload import make_mix, peer_mix, ttft_mix

MAX_MODEL_LEN = 512  # tokens of prompt and answer; the mix has fewer
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB, the size of Headrace's cache
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # the default leaves one core idle, of two
}


def main(folder: str, seed: int, concurrency: int) -> None:
    os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams  # installed in another environment

    llm = LLM(
        model=folder,
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=concurrency,
        enable_prefix_caching=True,
    )

    def answer(items: list[Any]) -> int:
        chats = [[{"role": "user", "content": item.prompt}] for item in items]
        params = [SamplingParams(temperature=0, max_tokens=item.output_tokens, ignore_eos=True) for item in items]
        answers = llm.chat(chats, params, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    def first_token(item: Any) -> float:
        """Return the seconds to the first token of a request that runs alone."""
        begin = time.perf_counter()
        answer([replace(item, output_tokens=1)])
        return time.perf_counter() - begin

    answer(make_mix(seed + 2, 2))
    items = peer_mix(seed, concurrency)
    with foreign_load() as during:
        begin = time.perf_counter()
        tokens = answer(items)
        rate = tokens / (time.perf_counter() - begin)
        waits = list(map(first_token, ttft_mix(seed)))
    print(json.dumps({"tokens": tokens, "rate": rate, "waits": waits, "foreign": during.share}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
