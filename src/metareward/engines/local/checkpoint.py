"""Loads a Hugging Face model folder onto a device; errors say in one line what is wrong with the folder.

On a CPU, linear layers use oneDNN with weights reordered in advance: for products of some tens of rows PyTorch's
`linear` spends about as long on reordering the weights in every call as on multiplying, above all in bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from metareward.engines.base import EngineError, require_model_folder, spelling
from metareward.engines.chat import ChatEncoder
from metareward.engines.device import default_dtype
from metareward.engines.local.attention import AttentionBackend
from metareward.errors import UserError
from metareward.types import Messages

# With these, rotary angles change for the whole batch once a position exceeds the length of pretraining.
_ROTARY_BY_LENGTH = ("dynamic", "longrope")


class VerdictHead:
    """Logits of a few tokens in float32, of the input that the model's output embedding was last given.

    A logit in bfloat16 has 8 significant bits, so probabilities of a verdict's tokens would take few different values.
    On a CPU the weights are kept beside their reordered copy (`OneDNNLinear`), unless they are the input embedding's.
    """

    # Tokens in one product: a fixed number, so that no sum depends on how many tokens other requests ask for.
    WIDTH = 32

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._inputs = torch.empty(0)

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype) -> VerdictHead | None:
        """The head of ``model``; None in float32, where it has nothing to mend, and where logits aren't its product."""
        head = model.get_output_embeddings()
        if dtype == torch.float32 or type(head) is not nn.Linear or _changes_logits(model.config.get_text_config()):
            return None
        return cls(head.weight.detach(), None if head.bias is None else head.bias.detach())

    def watch(self, module: nn.Module) -> None:
        """Note the input of each call of ``module``, the output embedding."""

        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._inputs = inputs[0]

        module.register_forward_pre_hook(note)

    @property
    def inputs(self) -> Tensor:
        """The last input at its last position: (rows, hidden size)."""
        return self._inputs[:, -1]

    def logits(self, inputs_RD: Tensor, tokens_RA: Tensor) -> Tensor:
        """The logits (R, A) of each row's tokens, for as many rows as inputs; A is a multiple of `WIDTH`."""
        inputs_R1D, found = inputs_RD.float()[:, None], list[Tensor]()
        for tokens_RW in torch.split(tokens_RA, self.WIDTH, dim=1):
            products = inputs_R1D * self._weight[tokens_RW].float()
            found.append(products.sum(dim=-1) + (0 if self._bias is None else self._bias[tokens_RW].float()))
        return torch.cat(found, dim=1)


def _changes_logits(config: Any) -> bool:
    """Whether the model scales or caps what its output embedding gives, by the names of its settings."""
    names = [name for name in config.to_dict() if "logit" in name or name.startswith("lm_head")]
    values = (getattr(config, name, None) for name in names if name != "logits_to_keep")
    return any(isinstance(value, int | float) and value not in (0, 1) for value in values)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded decoder-only model with its tokenizer. ``context``: its maximum number of tokens.

    ``verdict_head``: more exact logits of few tokens; None where the model's own are as exact.
    """

    folder: Path
    model: Any
    tokenizer: Any
    encoder: ChatEncoder
    attention: AttentionBackend
    device: torch.device
    dtype: torch.dtype
    stop_ids: frozenset[int]
    context: int
    verdict_head: VerdictHead | None = None

    def encode(self, messages: Messages, *, continue_last: bool = False) -> list[int]:
        """Token ids of the conversation; see `ChatEncoder.encode`."""
        return self.encoder.encode(messages, continue_last=continue_last)

    def encode_choices(self, before: str, choices: Sequence[str]) -> dict[tuple[int, ...], str]:
        """The choices by their token ids where ``before`` stands to their left; see `Sampling` on spellings.

        Raises `EngineError` for choices that the tokenizer can't tell apart or can't put there, `UnicodeEncodeError`
        for lone surrogates.
        """
        "".join(choices).encode()
        head, found, ambiguous = self._ids(before), dict[tuple[int, ...], str](), set[tuple[int, ...]]()
        for choice in choices:
            whole = self._ids(before + choice)
            # A tokenizer that joins the choice to the text before it has tokens of the choice alone, too.
            ids = tuple(whole[len(head) :] if whole[: len(head)] == head else self._ids(choice))
            if ids and self.tokenizer.unk_token_id not in ids and self.decode([*head, *ids]) == self.decode(whole):
                same = spelling(found.setdefault(ids, choice)) == spelling(choice)
                ambiguous |= set() if same else {ids}
        found = {ids: choice for ids, choice in found.items() if ids not in ambiguous}
        written = set(map(spelling, found.values()))
        if missing := [choice for choice in choices if spelling(choice) not in written]:
            if ambiguous:
                raise EngineError(f"the tokenizer can't tell the choices {tuple(choices)} apart")
            raise EngineError(f"the tokenizer has no tokens for {missing[0]!r} after {before!r}")
        return found

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of generated tokens, without special tokens and otherwise unchanged."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def load(folder: Path, device: str, dtype: str) -> Checkpoint:
    """Load a Hugging Face folder with safetensors weights and a chat template. Code in the folder is never run.

    Raises `UserError` naming the folder, what is missing and the fix.
    """
    require_model_folder(folder)
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    tokenizer = load_tokenizer(folder)
    attention = AttentionBackend()
    config = _config(folder)
    model = _model(folder, config, attention, torch_dtype).to(torch_device).eval().requires_grad_(False)
    verdict_head = VerdictHead.of(model, torch_dtype)
    if torch_device.type == "cpu":
        use_onednn_linear(model)
    if verdict_head is not None:
        verdict_head.watch(model.get_output_embeddings())
    stop_ids, context = _stop_ids(folder, tokenizer, config), _context(folder, config)
    encoder = ChatEncoder(tokenizer)
    return Checkpoint(
        folder, model, tokenizer, encoder, attention, torch_device, torch_dtype, stop_ids, context, verdict_head
    )


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises `UserError` if it can't be loaded or has no chat template."""
    tokenizer = _load(AutoTokenizer, folder, "the tokenizer", trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: the tokenizer has no chat template; add chat_template.jinja to the folder")
    return tokenizer


def choose_device(device: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Raises `UserError` if it isn't available."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"engine.device {device!r} is not available ({reason}); fix: use auto or cpu") from error


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype for ``auto``, ``float32`` or ``bfloat16``; ``auto`` is bfloat16 where the device multiplies it fast."""
    if dtype == "auto":
        dtype = default_dtype(device.type)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise UserError(f"engine.dtype {dtype!r} is unknown; fix: use auto, float32 or bfloat16")
    return known[dtype]


def _config(folder: Path) -> Any:
    config = _load(AutoConfig, folder, "config.json", trust_remote_code=False)
    if config.is_encoder_decoder:
        raise UserError(
            f"{folder}: {config.model_type} is an encoder-decoder; the local engine runs decoder-only models"
        )
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if unsupported := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise UserError(
            f"{folder}: {config.model_type} has {unsupported[0]} layers; "
            "the local engine supports full_attention and sliding_attention"
        )
    return config


def _model(folder: Path, config: Any, attention: AttentionBackend, dtype: torch.dtype) -> Any:
    try:
        model, report = _load(
            AutoModelForCausalLM,
            folder,
            "the weights",
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=attention.name,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except KeyError as error:
        kind = config.model_type
        raise UserError(
            f"{folder}: {kind} models bypass transformers' attention interface; fix: use another engine"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder}: the weights lack {missing[0]} ({len(missing)} missing in all); save the model again"
        )
    return model


def _load(loader: Any, folder: Path, what: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: can't load {what}: {reason}") from error


def _stop_ids(folder: Path, tokenizer: Any, config: Any) -> frozenset[int]:
    found = [tokenizer.eos_token_id, config.get_text_config().eos_token_id]
    if (folder / "generation_config.json").is_file():
        found = [_load(GenerationConfig, folder, "generation_config.json").eos_token_id, tokenizer.eos_token_id]
    ids: set[int] = set()
    for entry in found:
        ids.update([] if entry is None else [entry] if isinstance(entry, int) else entry)
    return frozenset(ids)


def _context(folder: Path, config: Any) -> int:
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)  # also where config.json calls it n_positions (GPT-2)
    if not isinstance(context, int):
        raise UserError(f"{folder}: config.json has no max_position_embeddings, the model's context in tokens; add it")
    rotary = text.to_dict().get("rope_parameters") or {}
    if rotary.get("rope_type") not in _ROTARY_BY_LENGTH:
        return context
    return min(context, int(rotary.get("original_max_position_embeddings") or context))


class OneDNNLinear(nn.Module):
    """`nn.Linear` for inference on a CPU, with weights reordered for oneDNN in advance."""

    # The reordered layout suits inputs of about so many rows best; all sizes work.
    ROWS = 96

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), self.ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return outputs


def use_onednn_linear(model: Any) -> None:
    """Replace every `nn.Linear` of a model on a CPU by `OneDNNLinear`, if oneDNN is available."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            # Subclasses may do more than multiply.
            if type(child) is nn.Linear:
                setattr(module, name, OneDNNLinear(child))
