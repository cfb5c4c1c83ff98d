"""Every job of jobs/ through the job server of a real head: what it prints, and how it ends."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from manifests import ROOT
from ports import wait_for
from ray.job_submission import JobStatus, JobSubmissionClient
from ray_head import ray_head

from pipelines.core.artifacts import load_artifact
from pipelines.experiments.workflow import STEPS, step_settings

pytestmark = [pytest.mark.ray, pytest.mark.slow]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


@pytest.fixture(scope="module")
def head(tiny_workflow):
    with ray_head({"RAY_AUTH_MODE": "disabled"}) as found:
        yield found


@pytest.fixture(scope="module")
def jobs(head):
    return JobSubmissionClient(head.url)


def config(path: Path, settings) -> str:
    path.write_text(yaml.safe_dump(json.loads(settings.model_dump_json())))
    return str(path)


def commands(tiny_workflow, folder: Path) -> dict[str, list[str]]:
    """{job: its arguments}, on what the tiny workflow made; --dry-run of those that take long, never end, or have a
    large model, and of the steps that `test_cluster.py` runs."""
    settings, _, outcomes = tiny_workflow
    made = {name: outcome.artifact.uri for name, outcome in outcomes.items()}
    settings = settings.model_copy(update={"base": str(Path(settings.base).absolute())})
    finetune = step_settings(STEPS["finetune"], settings, made)
    run, curated, base = f"run.storage={folder}/runs", f"curated={made['curate']}", f"base={settings.base}"
    encoded, basis = f"encoded={made['encode']}", f"basis={made['basis']}"
    small = ["prompts.count=2", "images_per_prompt=1", "sampling.height=32", "sampling.width=32"]
    exported = config(folder / "finetune.yaml", finetune)
    sweep = [f"evaluate.{setting}" for setting in small]
    return {
        "basis": ["jobs/configs/basis/demo.yaml", run, curated, encoded, "--dry-run"],
        "caption": ["jobs/configs/caption/laion.yaml", run, curated, "--dry-run"],
        "color_stats": ["jobs/configs/color_stats/demo.yaml", run, curated],
        "curate": ["jobs/configs/curate/demo.yaml", run, "--dry-run"],
        "demo_ui": ["--dry-run"],
        "encode": ["jobs/configs/encode/demo.yaml", run, curated, base, "--dry-run"],
        "evaluate": ["jobs/configs/evaluate/toy.yaml", run, curated, "--dry-run"],
        "export": [f"finetune={exported}", f"out={folder}/exported", "add_to_registry=false"],
        "finetune": ["jobs/configs/finetune/toy_klein.yaml", curated, encoded, basis, base, "--dry-run"],
        "import_jit": ["checkpoint=jit.pth", "--dry-run"],
        "make_demo_data": ["photos=7", "--dry-run"],
        "make_toy_base": ["--dry-run"],
        "make_toy_encoder": ["--dry-run"],
        "peers": ["jobs/configs/peers/toy.yaml", run, f"evaluate.{curated}", "--dry-run"],
        "pretrain": ["jobs/configs/pretrain/toy_jit_r8.yaml", run, curated, basis, "--dry-run"],
        "rank_sweep": ["jobs/configs/rank_sweep/toy.yaml", run, "--dry-run"],
        "report": [f"out={folder}/report.html", f"evaluations.tiny={made['evaluate']}"],
        "sample": ["jobs/configs/sample/toy.yaml", run, "prompts=[sun]", "seeds=[0]", "latent=false", "steps=2"],
        "sweep": ["jobs/configs/sweep/toy.yaml", run, f"evaluate.{curated}", *sweep, "grid={sampling.steps: [2]}"],
        "time_to_quality": ["jobs/configs/time_to_quality/toy.yaml", run, f"evaluate.{curated}", "--dry-run"],
        "workflow": [config(folder / "workflow.yaml", settings)],
    }


def test_every_job_runs_and_prints_its_artifact(jobs, tiny_workflow, tmp_path):
    """All at once, as on a cluster of many. Each step's last line is its artifact, in the log that is asked for; a bad
    setting ends with 2 and one line; and what was sent is small."""
    called = commands(tiny_workflow, tmp_path)
    assert sorted(called) == JOBS
    curate = ["python", "jobs/curate.py", "jobs/configs/curate/demo.yaml"]
    entrypoints = {
        **{name: shlex.join(["python", f"jobs/{name}.py", *rest]) for name, rest in called.items()},
        "bad setting": shlex.join([*curate, "rows_per_file=0"]),
        "bad storage": shlex.join([*curate, f"source={ROOT}/tests"]),
        "sent": "ls -A; du -sm . | cut -f1",
    }
    environment = {"working_dir": str(ROOT), "env_vars": {"HF_HUB_OFFLINE": "1"}}
    names = {name: jobs.submit_job(entrypoint=line, runtime_env=environment) for name, line in entrypoints.items()}
    wait_for(lambda: all(jobs.get_job_status(job) in ENDED for job in names.values()), seconds=400, every=1)
    logs = {name: jobs.get_job_logs(job) for name, job in names.items()}
    ends = {name: jobs.get_job_info(job).driver_exit_code for name, job in names.items()}
    for name, arguments in called.items():
        assert ends[name] == 0, f"{name}: {logs[name][-3000:]}"
        if name not in ("export", "report"):  # whose arguments are files
            (line,) = [line for line in logs[name].splitlines() if line.startswith('{"artifact"')]
            made = json.loads(line)["artifact"]
            assert (made is None) == ("--dry-run" in arguments)
            assert made is None or load_artifact(made).id
    assert (tmp_path / "exported/adapter/config.json").exists()
    assert (tmp_path / "report.html").exists()
    stood = json.loads(logs["workflow"].splitlines()[-1])
    assert stood["artifact"] == tiny_workflow[2]["evaluate"].artifact.uri

    assert ends["bad setting"] == ends["bad storage"] == 2
    assert "error: rows_per_file=0: input should be greater than or equal to 1" in logs["bad setting"].splitlines()
    assert "error: run.storage='runs/demo': is in the job's working directory, which" in logs["bad storage"]

    *sent, size = [line for line in logs["sent"].splitlines() if "INFO" not in line and "entrypoint" not in line]
    assert {"asymflow", "jobs", "models", "pipelines"} <= set(sent)
    assert not {"tests", "docs", "benchmarks", "infra", "runs", "data", ".venv", ".git"} & set(sent)
    assert int(size) < 30


def test_the_command_line_fails_where_the_job_does(head):
    done = head.submit("python", "jobs/curate.py", "jobs/configs/curate/demo.yaml", "rows_per_file=0")
    assert done.returncode == 1
    assert "error: rows_per_file=0: input should be greater than or equal to 1" in done.stdout.splitlines()
