"""What a GPU shows, in under 10 minutes: whether everything is right there, and how fast it is.

Correct: the local engine against `generate`, alone and in a batch; packed rows with FlexAttention, forward and
backward, in float32 and bfloat16; FSDP2 on one GPU against DDP. Fast: judge, meta-judge and whole units on Llama
shapes of 1B and 8B random weights, ours beside `generate` and vLLM (where .venv-vllm has it); full DPO of the 1B shape
on judge pairs beside plain TRL, with FLOP/s. Needs no network. Each check has a process of its own, so that its memory
is free when it ends, and a time limit; one that fails is a line in the results, and the others go on.

    python bench/gpu.py                                     # bench/results/gpu.json
    python bench/gpu.py --device cpu --shapes tiny          # a try without a GPU, of everything but FSDP2
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metareward.storage.run_log import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results/gpu.json"
LIMIT = 600.0  # seconds of all together
Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's dimensions. ``judge``: prompts and samples of each in a round of judging."""

    layers: int
    hidden: int
    middle: int
    heads: int
    key_heads: int
    vocabulary: int
    judge: tuple[int, int]

    @property
    def weights(self) -> int:
        """All weights; the head is a matrix of its own."""
        attention = 2 * self.hidden**2 * (1 + self.key_heads / self.heads)
        return int(self.layers * (attention + 3 * self.hidden * self.middle) + 2 * self.vocabulary * self.hidden)


SHAPES = {
    "tiny": Shape(2, 64, 176, 4, 2, 4096, (4, 3)),
    "1B": Shape(16, 2048, 8192, 32, 8, 128_256, (28, 11)),
    "8B": Shape(32, 4096, 14_336, 32, 8, 128_256, (28, 11)),
}
# What is right on a small shape is right on a large one; speed is the large ones'. Full DPO of 8B fits no card.
CHECKED = {
    "tiny": ("engine", "packing", "fsdp2"),
    "1B": ("engine", "annotation", "dpo"),
    "8B": ("annotation",),
}
# Dense bfloat16 FLOP/s and bytes/s, from the makers' data sheets (SXM boards).
PEAKS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12), "A100": (312e12, 2.0e12), "L4": (121e12, 0.3e12)}


def make_model(folder: Path, device: str) -> Found:
    """A model of the shape that the folder is named after: random bfloat16 weights, a tokenizer with unused tokens."""
    shape = SHAPES[folder.name]
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from annotate_models import TEMPLATE, make_tokenizer

    small = make_tokenizer()
    described = json.loads(small.backend_tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    vocabulary |= {f"\u2042{number}": number for number in range(len(small), shape.vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        bos_token="<s>", pad_token="<pad>", chat_template=TEMPLATE,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.middle,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None, pad_token_id=tokenizer.pad_token_id, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"weights": shape.weights}


# --- checks, each in a process of its own ---


def check_engine(folder: Path, device: str) -> Found:
    """Greedy texts against `generate`, and the same text alone as in a batch, in both number formats."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from annotate_models import Writer, make_tokenizer
    from metareward.engines.local.engine import LocalEngine
    from metareward.types import Message, Sampling

    writer, tokenizer = Writer(make_tokenizer(), 1), AutoTokenizer.from_pretrained(folder)
    texts, greedy, hot = [writer.text(100) for _ in range(8)], Sampling(0.0, 1.0, 24), Sampling(1.0, 0.95, 24, 5)
    found: Found = {}
    for dtype in ("float32", "bfloat16"):

        async def ask(engine: LocalEngine) -> tuple[list[str], bool]:
            many = await asyncio.gather(*(engine.complete((Message("user", text),), greedy, 1) for text in texts))
            alone = await engine.complete((Message("user", texts[0]),), hot, 4)
            crowd = await asyncio.gather(*(engine.complete((Message("user", text),), hot, 4) for text in texts))
            same = [each.text for each in alone] == [each.text for each in crowd[0]]
            await engine.aclose()
            return [one.text for (one,) in many], same

        engine = LocalEngine.open(folder, device=device, dtype=dtype, max_num_seqs=64, deterministic=True)
        ours, same = asyncio.run(ask(engine))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
        equal = 0
        for text, own in zip(texts, ours, strict=True):
            turn = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            ids = ids.to(device)
            drawn = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids.input_ids.shape[1] :]
            equal += tokenizer.decode(drawn, skip_special_tokens=True) == own
        found[dtype] = {"greedy_equal_to_generate": f"{equal} of {len(texts)}", "alone_as_in_a_batch": same}
    return found


def _train(folder: Path, work: Path, device: str, count: int, **settings: Any) -> tuple[Any, float]:
    """The lineage of DPO on judge pairs, and seconds."""
    import dpo
    from metareward.storage.pair_files import write_pairs
    from metareward.training.config import DpoJob, TrainingSettings
    from metareward.training.launch import run_training
    from metareward.training.models import load_tokenizer
    from metareward.types import Message, PreferencePair

    work.mkdir()
    made = dpo.make_pairs(dpo.KINDS[0], load_tokenizer(folder), count)
    pairs = [
        PreferencePair(
            "judge", f"p{i}", tuple(Message("user", turn["content"]) for turn in pair.prompt),
            pair.chosen[0]["content"], pair.rejected[0]["content"], 0, 1, 1.0, 0.0, candidate=0,
        )
        for i, pair in enumerate(made)
    ]  # fmt: skip
    write_pairs(work / "pairs.parquet", pairs)
    chosen = {"learning_rate": 1e-5, "num_train_epochs": 1, "batch_size": 8, "max_length": 2048, "device": device}
    job = DpoJob(
        settings=TrainingSettings.model_validate(chosen | settings), start=folder, reference=folder,
        data=(work / "pairs.parquet",), output=work / "model", log=work / "log.jsonl",
    )  # fmt: skip
    began = time.perf_counter()
    return run_training(job, lambda _: None).lineage, time.perf_counter() - began


def check_packing(folder: Path, device: str) -> Found:
    """Whether DPO packs its rows in each number format: its own check compares figures and gradients."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as work:
        for dtype in ("float32", "bfloat16"):
            lineage, seconds = _train(folder, Path(work) / dtype, device, 16, dtype=dtype)
            found[dtype] = {"not_packed": lineage.not_packed, "seconds": round(seconds, 1)}
    return found


def check_fsdp2(folder: Path, device: str) -> Found:
    """FSDP2 with one process against DDP: the largest difference of a weight, beside the largest change."""
    import torch
    from safetensors.torch import load_file

    def weights(at: Path) -> dict[str, Any]:
        files = sorted(at.glob("*.safetensors"))
        return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}

    with tempfile.TemporaryDirectory() as work:
        for sharding in ("ddp", "fsdp2"):
            _train(folder, Path(work) / sharding, device, 16, dtype="float32", sharding=sharding, save_dtype="float32")
        before, plain, sharded = (weights(at) for at in (folder, Path(work) / "ddp/model", Path(work) / "fsdp2/model"))
    pairs = [(plain[name], sharded[name], before[name]) for name in plain]
    return {
        "largest_difference": max(float((a - b).abs().max()) for a, b, _ in pairs),
        "largest_change": max(float((a - c).abs().max()) for a, _, c in pairs),
        "torch": torch.__version__,
    }


def speed_of_annotation(folder: Path, device: str) -> Found:
    """Tokens a second of each contestant at each kind of work: the median of three rounds after a warm-up."""
    import annotate

    shape = SHAPES[folder.name]
    prompts, samples = shape.judge
    work = annotate.Work(annotate.Scale(max(1, prompts // 7), min(7, prompts), samples), 1)
    annotate.SURROUNDINGS |= {"BENCH_DEVICE": device}
    found: Found = {}
    for name in ("ours", "generate", "vllm"):
        try:
            contestant = annotate.Contestant(name, folder, "bfloat16")
        except annotate.AbsentError as reason:
            found[name] = {"absent": str(reason)}
            continue
        rates: Found = {}
        try:
            for kind, draw in (("judge", work.judge), ("meta", work.meta), ("unit", work.unit)):
                contestant.ask(*draw(annotate.NEW), seed=0, warm=True)
                rounds = [contestant.ask(*draw(annotate.NEW), seed=seed)[:2] for seed in (1, 2, 3)]
                rates[kind] = statistics.median(tokens / seconds for seconds, tokens in rounds)
        except annotate.AbsentError as reason:
            rates["absent"] = str(reason)
        finally:
            contestant.close()
        found[name] = rates
    return found


def speed_of_dpo(folder: Path, device: str) -> Found:
    """Pairs a second of ours and of plain TRL on judge pairs; FLOP/s as 8 for each weight and token without sharing."""
    import dpo
    from metareward.training.models import load_tokenizer

    shape, found = SHAPES[folder.name], dict[str, Any]()
    pairs = dpo.make_pairs(dpo.KINDS[0], load_tokenizer(folder), 32)
    for name, run in (("TRL", dpo.run_trl), ("ours", dpo.run_ours)):
        with tempfile.TemporaryDirectory() as work:
            job = dpo.make_job("live, bf16", folder, Path(work))
            job = job.model_copy(update={"settings": job.settings.model_copy(update={"device": device})})
            seconds = run(job, pairs, Path(work))
        tokens = len(pairs) * 2 * 580
        found[name] = {
            "pairs_per_second": len(pairs) / seconds,
            "flops_without_sharing": 8 * shape.weights * tokens / seconds,
        }
    return found


def card(_: Path, device: str) -> Found:
    """The device, with its peaks where they are known."""
    if device == "cpu":
        return {"name": "CPU"}
    import torch

    name = torch.cuda.get_device_name()
    flops, bandwidth = next((peaks for key, peaks in PEAKS.items() if key in name), (None, None))
    memory = torch.cuda.get_device_properties(0).total_memory
    return {"name": name, "memory": memory, "peak_flops": flops, "peak_bandwidth": bandwidth}


CHECKS: Mapping[str, tuple[Callable[[Path, str], Found], float]] = {
    "card": (card, 60.0),
    "model": (make_model, 180.0),
    "engine": (check_engine, 120.0),
    "packing": (check_packing, 150.0),
    "fsdp2": (check_fsdp2, 120.0),
    "annotation": (speed_of_annotation, 240.0),
    "dpo": (speed_of_dpo, 150.0),
}


def run_check(name: str, folder: Path, device: str, seconds: float) -> Found:
    """The result of one check from a process of its own, or why there is none."""
    command = [sys.executable, __file__, "--check", name, "--folder", str(folder), "--device", device]
    python_path = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
    surroundings = os.environ | {"PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    began = time.perf_counter()
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=surroundings, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {seconds:.0f} s"}
    took = round(time.perf_counter() - began, 1)
    if told.returncode:
        lines = told.stderr.strip().splitlines()
        return {"error": lines[-1][:300] if lines else f"status {told.returncode}", "took": took}
    found: Found = json.loads(told.stdout.splitlines()[-1])
    return found | {"took": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default="tiny,1B,8B")
    parser.add_argument("--checks", help="instead of those meant for each shape")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check:
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print
        print(json.dumps(CHECKS[given.check][0](given.folder, given.device)), file=out, flush=True)
        return
    began = time.perf_counter()

    def run(check: str, folder: Path) -> Found:
        left = LIMIT - (time.perf_counter() - began)
        found = (
            run_check(check, folder, given.device, min(left, CHECKS[check][1])) if left > 20 else {"error": "no time"}
        )
        print(f"{folder.name} {check}: {json.dumps(found)}", flush=True)
        return found

    result: Found = {"environment": environment(), "card": run("card", Path()), "shapes": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.shapes.split(","):
            folder = Path(scratch) / name
            found = {"model": run("model", folder)}
            wanted = CHECKED[name] if given.checks is None else tuple(given.checks.split(","))
            found |= {check: run(check, folder) for check in wanted if "error" not in found["model"]}
            result["shapes"][name] = found
            given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
