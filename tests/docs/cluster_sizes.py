"""The table of sizes in docs/cluster.md: the arithmetic of ``metareward plan`` for two published shapes."""

from __future__ import annotations

from metareward.config.schema import load_recipe
from metareward.training.memory import ModelSize, host_bytes, training_bytes
from metareward.training.requirements import memory_spec

# Weights, layers, width and vocabulary as published.
MODELS = {
    "Llama-3-8B": ModelSize(8_030_261_248, 32, 4096, 128_256),
    "Llama-3-70B": ModelSize(70_553_706_496, 80, 8192, 128_256),
}
# How they are trained, beside `llama3-8b-8gpu`.
WAYS = {
    "`fsdp2`, 8 GPUs": (),
    "`ddp`, 1 GPU": ("training.num_processes=1", "training.sharding=ddp"),
    "`ddp`, 1 GPU, LoRA": ("training.num_processes=1", "training.sharding=ddp", "training.method=lora"),
    "`ddp`, 1 GPU, QLoRA": ("training.num_processes=1", "training.sharding=ddp", "training.method=qlora"),
}


def sizes_table(_: str) -> str:
    """A row for each model and way: memory of each GPU, of the machine, and of one model on the disk, in GB."""
    rows = ["| model | training | each GPU | the machine | a model on the disk |", "| --- | --- | --- | --- | --- |"]
    for name, size in MODELS.items():
        for way, changes in WAYS.items():
            recipe = load_recipe("llama3-8b-8gpu", ["model=m", "prompts.source=p.jsonl", *changes])
            spec = memory_spec(recipe.training, max(recipe.answers.max_tokens, recipe.judgments.max_tokens))
            needed = [training_bytes(size, spec), host_bytes(size, spec), 2 * size.weights]
            rows.append(f"| {name} | {way} | {' | '.join(f'{each / 1e9:,.0f} GB' for each in needed)} |")
    return "\n".join(rows) + "\n"
