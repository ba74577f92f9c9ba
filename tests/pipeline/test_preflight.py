"""What a run would stop at later is refused by `plan` and `run` alike, in one line, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import llama_folder
from whole_runs import invoke

from metareward.errors import UserError
from metareward.pocket.world import MODEL


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODEL, tmp_path / "model")
    rows = (json.dumps({"prompt": f"Name {number} fruits."}) for number in range(200))
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    return tmp_path


SMALL = (
    "model=model",
    "prompts.source=prompts.jsonl",
    "prompts.per_iteration=20",
    "prompts.held_out=10",
    "benchmarks=[]",
)


def refused(command: str, *changes: str, options: tuple[str, ...] = ()) -> str:
    """The one line with which ``command`` refuses the pocket recipe with ``changes``."""
    words = [word for change in (*SMALL, *changes) for word in ("--set", change)]
    result = invoke([command, "pocket", *options, *words])
    assert isinstance(result.exception, UserError), result.output
    line = str(result.exception)
    assert "\n" not in line
    return line


def spoil_json(name: str) -> Callable[[Path], object]:
    return lambda at: (at / "model" / name).write_text("{")


def truncate(at: Path) -> None:
    path = at / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def forget_template(at: Path) -> None:
    (at / "model/chat_template.jinja").unlink(missing_ok=True)
    path = at / "model/tokenizer_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "chat_template"})
    )


def lose_a_shard(at: Path) -> None:
    (at / "model/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))


BROKEN: list[tuple[Callable[[Path], object], tuple[str, ...], str]] = [
    (lambda at: None, ("model=nope",), "model: nope: no such model folder; fix: name a Hugging Face"),
    (
        lambda at: None,
        ("model=meta-llama/Llama-3",),
        "fix: metareward run --network fetches hub:meta-llama/Llama-3 to models/meta-llama/Llama-3, or: ",
    ),
    (
        lambda at: None,
        ("training.start=hub:me/mine-1.5",),
        "metareward model hub:me/mine-1.5 --network --out models/me/mine-1.5, then "
        "--set training.start=models/me/mine-1.5",
    ),
    (lambda at: None, ("model=models/gone",), "make one with metareward model smollm2 or hub:OWNER/NAME"),
    (lambda at: None, ("training.start=nope",), "training.start: nope: no such model folder"),
    (lambda at: (at / "model/model.safetensors").unlink(), (), "no *.safetensors weights"),
    (truncate, (), "its header says"),
    (lambda at: (at / "model/model.safetensors").write_bytes(b"abc"), (), "not a readable safetensors file"),
    (lose_a_shard, (), "1 files of weights are missing (model-2.safetensors)"),
    (spoil_json("config.json"), (), "config.json: not readable JSON"),
    (spoil_json("tokenizer.json"), (), "tokenizer.json: not a readable tokenizer"),
    (forget_template, (), "the tokenizer has no chat template; fix: add chat_template.jinja"),
    (
        lambda at: (at / "model/chat_template.jinja").write_text("{% for m in messages %}"),
        (),
        "the chat template can't be read: line 1",
    ),
    (lambda at: None, ("prompts.source=gone.jsonl",), "gone.jsonl: can't be read"),
    (lambda at: (at / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n'), (), "prompts.jsonl:2: "),
    (lambda at: None, ("prompts.per_iteration=100",), "iteration 4 needs 400 (4 x 100) and there are 200"),
    (lambda at: None, ("training.method=qlora",), "training.method: qlora needs bitsandbytes; fix: pip install"),
    (lambda at: None, ("training.report_to=[mlflow]",), "training.report_to: mlflow can't be imported"),
    (lambda at: None, ("training.device=cuda",), "training.device is cuda, but torch finds no GPU"),
    (lambda at: None, ("training.sharding=zero3",), "training.sharding: zero3 needs deepspeed"),
    (lambda at: None, ("training.sharding=fsdp2",), "training.sharding: fsdp2 needs GPUs"),
    (lambda at: None, ("engine.device=cuda",), "engine.device is cuda, but the machine has no GPU"),
    (lambda at: None, ("engine={kind: vllm, serve: true, python: gone}",), "engine.python: gone: no such program"),
    (lambda at: None, ("answers.max_tokens=4000",), "answers.max_tokens: 4000, which 20 of 20 prompts (up to"),
    (lambda at: None, ("judgments.max_tokens=500",), "judgments.max_tokens: 500, which 20 of 20 prompts (up to"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "changes", "line"), BROKEN, ids=[line[:40] for _, _, line in BROKEN])
@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_a_run_would_stop_at_is_refused_first(
    here: Path, command: str, spoil: Callable[[Path], object], changes: tuple[str, ...], line: str
) -> None:
    spoil(here)
    assert line in refused(command, *changes)
    assert not (here / "runs").exists()


def plan_for(machine: str, preset: str, *changes: str) -> str:
    words = [word for change in changes for word in ("--set", change)]
    result = invoke(["plan", preset, "--machine", machine, *words])
    return f"{result.output} {result.exception or ''}"


@pytest.mark.parametrize(
    ("preset", "machine"), [("llama3-8b-8gpu", "8x80"), ("llama3-8b-1gpu", "1x80"), ("small-24gb", "1x24")]
)
def test_each_preset_fits_its_machine(here: Path, preset: str, machine: str) -> None:
    llama_folder(here / "8b")
    given = ("model=8b", "prompts.source=prompts.jsonl", "prompts.per_iteration=20")
    assert f"the recipe can run on {machine[0]} GPU" in plan_for(machine, preset, *given)


@pytest.mark.parametrize(
    ("preset", "machine", "fix"),
    [
        ("meta-rewarding", "8x80", "--set training.num_processes=8 --set training.sharding=fsdp2"),
        ("meta-rewarding", "1x80", "--set training.gradient_checkpointing=true --set training.method=lora"),
        ("llama3-8b-8gpu", "1x80", "--set training.num_processes=1 --set training.sharding=ddp --set training.method="),
        ("llama3-8b-8gpu", "1x24", "--set training.method=lora --set training.max_length=2048"),
        ("llama3-8b-8gpu", "6x80", "training.num_processes: 8 processes, one for each GPU, and the machine has 6 GPUs"),
        ("llama3-8b-8gpu", "6x80", "--set training.num_processes=4"),  # which divides a batch
        ("llama3-8b-8gpu", "8x24", "--set training.max_length=2048"),
        ("llama3-8b-1gpu", "1x24", "--set training.method=qlora"),
    ],
)
def test_what_doesnt_fit_is_refused_with_settings_that_do(here: Path, preset: str, machine: str, fix: str) -> None:
    llama_folder(here / "8b")
    given = ["model=8b", "prompts.source=prompts.jsonl", "prompts.per_iteration=20"]
    told = plan_for(machine, preset, *given)
    assert fix in told and "the recipe can run" not in told
    if "--set" in fix:  # the fix is enough
        words = told.rpartition("fix: ")[2].split()
        assert "the recipe can run" in plan_for(machine, preset, *given, *(w for w in words if w != "--set"))


ON_RAY = (
    "model=8b",
    "prompts.source=prompts.jsonl",
    "prompts.per_iteration=20",
    "engine={kind: ray, engine: {kind: vllm, dtype: bfloat16}}",
    "training.launcher=ray",
)


@pytest.mark.parametrize(
    ("machine", "changes", "told"),
    [
        ("2x8x80", (), "the recipe can run on 2 machines, each 8 GPUs of 80 GB"),
        ("2x8x80", ("training.num_processes=16",), "the recipe can run on 2 machines"),
        (
            "8x80",
            ("training.num_processes=16",),
            "num_processes: 16 processes, one for each GPU, and the machine has 8",
        ),
        ("2x4x24", (), "training: M1 takes up to 26 GB on each device, and the cluster has 2 machines, each 4 GPUs of"),
        ("2x8x80", ("training.num_processes=1", "training.sharding=ddp"), "fix: --set training.num_processes=16"),
        ("4x4x80", ("training.launcher=local",), "8 processes, one for each GPU, and the cluster has 4"),
        ("2x8x80", ("engine.engine.tensor_parallel_size=16",), "takes 16 GPUs of one machine, and the cluster has 2"),
        ("2x8x12", (), "engine.engine: the model's weights take 16 GB on each device of 2 machines, each 8 GPUs of 12"),
    ],
)
def test_the_sums_of_a_described_cluster(here: Path, machine: str, changes: tuple[str, ...], told: str) -> None:
    llama_folder(here / "8b")
    assert told in plan_for(machine, "llama3-8b-8gpu", *ON_RAY, *changes)


def test_a_cluster_of_this_machine_is_checked_and_of_others_isnt(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = ("engine={kind: ray, engine: {dtype: float32}}", "training.launcher=ray", "training.sharding=fsdp2")
    assert "training.sharding: fsdp2 needs GPUs, and torch finds none" in refused("plan", *ray)
    words = [word for change in (*SMALL, *ray) for word in ("--set", change)]
    monkeypatch.setenv("RAY_ADDRESS", "far:6379")
    told = invoke(["plan", "pocket", *words])
    assert told.exit_code == 0 and "cluster's nodes aren't checked; --machine 2x8x80" in told.output


def test_the_longest_question_of_criteria_has_to_fit(here: Path) -> None:
    one = ("judgments.n=1", "judgments.min_valid=1", "evaluation.judgments=1", "evaluation.meta_pairs=0")
    without = [f"iterations.{t}.judge_pairs=false" for t in (1, 2, 3, 4)]
    changes = [*SMALL, *one, *without, "judgments.rubric=criteria", "judgments.max_tokens=10000"]
    words = [word for change in changes for word in ("--set", change)]
    result = invoke(["plan", "pocket", *words])
    assert result.exit_code == 0, result.exception  # max_tokens has no effect
    mine = here / "mine.yaml"
    mine.write_text(f"criteria:\n  - Is it short?\n  - {'Is it very long? ' * 200}\n", encoding="utf-8")
    line = refused("plan", *one, *without, "judgments.rubric=mine.yaml")
    assert line.startswith("judgments.max_tokens: 1, which 20 of 20 prompts (up to")
