"""Small tokenizers of eight chat template families: their kind of tokenizer, special tokens and chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "Name four red fruits, please. The answer is good; it says which of them a judge would give three points of five.\n"
    "Let me think about that: apples are red, and so are cherries. Score: 4\n\nWinner: Judgment A is better, user!"
)
_SPLIT = Regex(r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = \
messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}\
{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception(\
'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and \
system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' \
+ content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token \
}}{% endif %}{% endfor %}"""
LLAMA_3 = """\
{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + \
message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}\
{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ \
'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
# Qwen3's without tools: earlier thinking is left out, the last answer gets an empty one.
QWEN_3 = """\
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif \
%}\
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}{%- for message in \
messages[::-1] %}\
{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.multi_step_tool and message.role == "user" and \
message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith(\
'</tool_response>')) %}{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}\
{%- endfor %}{%- for message in messages %}{%- set content = message.content %}{%- if (message.role == "user") or \
(message.role == "system" and not loop.first) %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + \
'\\n' }}{%- elif message.role == "assistant" %}{%- set reasoning_content = '' %}{%- if '</think>' in content %}\
{%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{%- if loop.index0 > ns.last_query_index %}\
{%- if loop.last or (not loop.last and reasoning_content) %}{{- '<|im_start|>' + message.role + '\\n<think>\\n' + \
reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}{{- '<|im_start|>' + \
message.role + '\\n' + content }}{%- endif %}{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}\
{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- \
'<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- \
'<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception(\
'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == \
'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + \
role \
+ '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
'<start_of_turn>model\\n' }}{% endif %}"""
# Version 0.3: the delimiters are special tokens. Version 0.1's are text, as Llama 2's.
MISTRAL = """\
{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ \
raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if \
message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% else %}{{ ' ' + message['content'] | \
trim \
+ eos_token }}{% endif %}{% endfor %}"""
# DeepSeek-R1's distilled models: thinking is cut off, and the prompt of a generation opens it.
DEEPSEEK_R1 = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(\
system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = \
message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if \
message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and \
message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = \
content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}\
{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"""
CHATML = """\
{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
PHI_3 = """\
{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + \
'<|end|>\\n'}}\
{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == \
'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if \
add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""


@dataclass(frozen=True)
class Family:
    """``special`` tokens and other added tokens (``plain``); ``system``: whether it takes a system prompt."""

    template: str
    make: Callable[[], Tokenizer]
    bos: str | None
    eos: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    system: bool = True
    rstrip: bool = False

    @property
    def delimiters(self) -> tuple[str, ...]:
        return (*self.special, *self.plain)


def _byte_level(**options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_SPLIT, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def _nfc() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(prepend: bool, special: tuple[str, ...]) -> Tokenizer:
    """As SentencePiece's BPE is converted: spaces are letters, unknown letters are bytes, special tokens come first."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    words = [word for word in model["vocab"] if word != "\n"]
    merges = [tuple(merge) for merge in model["merges"] if not any("\n" in part for part in merge)]
    words = [word for word in words if "\n" not in word]
    vocabulary = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    places = {word: place for place, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(places, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prepend else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
    return tokenizer


_LLAMA = ("<unk>", "<s>", "</s>")
_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_V3 = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PHI = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
FAMILIES = {
    "llama-2": Family(LLAMA_2, lambda: _sentencepiece(True, _LLAMA), "<s>", "</s>", _LLAMA),
    "llama-3": Family(
        LLAMA_3,
        lambda: _byte_level(ignore_merges=True),
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", *_HEADERS),
    ),
    "qwen-3": Family(
        QWEN_3,
        _nfc,
        None,
        "<|im_end|>",
        _QWEN,
        ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|fim_prefix|>"),
    ),
    "gemma": Family(
        GEMMA, lambda: _sentencepiece(False, _GEMMA), "<bos>", "<eos>", _GEMMA, ("\n\n", "<table>"), system=False
    ),
    "mistral": Family(MISTRAL, lambda: _sentencepiece(True, _V3), "<s>", "</s>", _V3, system=False),
    "deepseek-r1": Family(
        DEEPSEEK_R1,
        _byte_level,
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜EOT｜>"),
    ),
    "chatml": Family(CHATML, _byte_level, None, "<|im_end|>", _QWEN),
    "phi-3": Family(PHI_3, lambda: _sentencepiece(True, _LLAMA), "<s>", "<|endoftext|>", (*_LLAMA, *_PHI), rstrip=True),
}


@lru_cache
def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The family's tokenizer, one for all tests."""
    family = FAMILIES[name]
    tokenizer = family.make()
    special = [AddedToken(each, normalized=False, special=True, rstrip=family.rstrip) for each in family.special]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(each, normalized=False, special=False) for each in family.plain])
    unknown = {"unk_token": "<unk>"} if "<unk>" in family.special else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.eos,
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
        **unknown,
    )
