"""Help and bad settings need no torch, Ray or MLflow: they answer within a second of processor time."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
HEAVY = ("torch", "ray", "mlflow", "deepspeed", "diffusers", "transformers", "peft", "pyarrow", "numpy", "boto3")
SECONDS = 1.0
TOY = "base=models/toy_klein"
FINETUNE = ["curated=a", "encoded=b", "basis=c", TOY]
BAD = {
    "curate": ["source=data", "buckets=wide"],
    "caption": ["curated=a", "model=b", "max_pixels=1"],
    "color_stats": [],
    "basis": ["curated=a", TOY, "layout=diagonal"],
    "encode": ["curated=a", TOY, "text=maybe"],
    "finetune": [*FINETUNE, "optim.lr=-1"],
    "pretrain": ["curated=a", "network.size=XL"],
    "sample": [TOY, "prompts=a fox", "steps=0"],
    "evaluate": [TOY, "suite=nonsense"],
    "workflow": [TOY, "nonsense=1"],
    "sweep": ["metric=trained/fid"],
    "rank_sweep": ["ranks=[]"],
    "demo_ui": ["port=-1"],
    "import_jit": ["checkpoint=a.pth", "guidance=0"],
    "make_demo_data": ["photos=few"],
    "make_toy_base": ["steps.flow=0"],
    "make_toy_encoder": ["stepz=3"],
    "time_to_quality": ["finetuned={}"],
    "peers": ["methods={}"],
}
SCRIPT = """
import contextlib, io, json, runpy, sys
calls = json.loads(sys.argv[1])
for job, arguments in calls:
    sys.argv = [f"jobs/{job}.py", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = None
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code or 0
    print(json.dumps([job, status, out.getvalue(), err.getvalue(), sorted({m.split(".")[0] for m in sys.modules})]))
"""


def run_jobs(calls):
    """Run jobs one after another in a process of its own: what one of them loads, all later ones have too."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_loads_nothing_heavy():
    answers = run_jobs([[job, ["--help"]] for job in JOBS])
    assert [job for job, *_ in answers] == JOBS
    for job, status, out, err, loaded in answers:
        assert status == 0, job
        assert "usage: " in out, job
        assert err == "", job
        assert not set(HEAVY) & set(loaded), job


def test_a_bad_setting_loads_nothing_heavy(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("{}")
    for job, status, out, err, loaded in run_jobs([[job, [str(config), *bad]] for job, bad in BAD.items()]):
        assert status == 2, job
        assert out == "", job
        assert err.startswith("error: "), job
        assert err.count("\n") == 1, job
        assert not set(HEAVY) & set(loaded), job


def test_the_plan_of_a_workflow_loads_nothing_heavy():
    calls = [["workflow", [f"jobs/configs/workflow/{name}.yaml", "--dry-run"]] for name in ("demo", "klein_9b")]
    for _, status, _, err, loaded in run_jobs(calls):
        assert status is None
        assert err == ""
        assert not set(HEAVY) & set(loaded)


def test_the_plan_of_a_training_loads_nothing_heavy():
    """What it would take is counted from shapes: no model is built."""
    configs = {"finetune": "finetune/toy_klein", "pretrain": "pretrain/toy_jit_r8"}
    calls = [[job, [f"jobs/configs/{config}.yaml", "--dry-run"]] for job, config in configs.items()]
    for job, status, out, err, loaded in run_jobs(calls):
        assert status is None, job
        assert err == "", job
        assert json.loads(out.splitlines()[-1])["metrics"]["memory_gib"] > 0, job
        assert not set(HEAVY) & set(loaded), job


@pytest.mark.parametrize("arguments", [["--help"], ["jobs/configs/finetune/toy_klein.yaml", TOY, "optim.lr=-1"]])
def test_the_answer_takes_less_than_a_second(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "jobs/finetune.py", *arguments], capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
