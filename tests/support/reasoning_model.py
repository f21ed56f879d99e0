"""Tiny random model that reasons: a tokenizer and a chat template in the form of Qwen 3's."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from tests.support.checkpoints import SHAPE

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ORDINARY = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
END_OF_TEXT, TURN_START, TURN_END, TOOL_CALL, _, _, _, THINK, END_THINK = range(256, 265)  # token ids

# the semantics of Qwen 3's: reasoning of turns before the last question is dropped, and thinking can be turned off
TEMPLATE = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nanswer with <tool_call></tool_call><|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set reasoning = m.reasoning_content or '' %}
{%- set content = m.content %}
{%- if not reasoning and '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or reasoning) %}
{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}
{{- content.lstrip('\\n') }}
{%- for call in m.tool_calls or [] %}{{ '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}{% endif %}"""
# the template opens the reasoning itself, as those of QwQ and DeepSeek R1 do
OPENING_TEMPLATE = TEMPLATE.replace("assistant\\n' }}\n{%- if enable", "assistant\\n<think>\\n' }}\n{%- if enable")


def reasoning_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, 0–255, and Qwen's tokens for turns, tool calls and reasoning."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = RustTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(list(SPECIAL))
    rust.add_tokens([AddedToken(each, special=False, normalized=False) for each in ORDINARY])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def save_reasoning_model(folder: Path, template: str = TEMPLATE) -> Path:
    """Save a random model of Qwen 3's architecture with that tokenizer."""
    torch.manual_seed(3)
    special = {"bos_token_id": END_OF_TEXT, "eos_token_id": TURN_END, "pad_token_id": END_OF_TEXT}
    config = Qwen3Config(**SHAPE | special, head_dim=16)
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    reasoning_tokenizer(template).save_pretrained(folder)
    return folder
