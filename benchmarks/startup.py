"""Processor time of a job's answer to --help, an invalid setting and --dry-run.

    python benchmarks/startup.py [--rounds 3]

Each command runs in a separate process. Results are minima over the rounds, since other load only adds time.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FINETUNE = ["jobs/finetune.py", "jobs/configs/finetune/klein_9b.yaml"]
LIMITS = {"--help": 1.0, "bad setting": 1.0, "--dry-run": 3.0}


def commands() -> dict[tuple[str, str], list[str]]:
    """{(job, kind): arguments of python}."""
    jobs = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
    return {
        **{(job, "--help"): [f"jobs/{job}", "--help"] for job in jobs},
        ("finetune.py", "bad setting"): [*FINETUNE, "optim.lr=-1"],
        ("finetune.py", "--dry-run"): [*FINETUNE, "--dry-run"],
        ("pretrain.py", "--dry-run"): ["jobs/pretrain.py", "jobs/configs/pretrain/imagenet_h16_r8.yaml", "--dry-run"],
        ("workflow.py", "--dry-run"): ["jobs/workflow.py", "jobs/configs/workflow/klein_9b.yaml", "--dry-run"],
    }


def processor_seconds(arguments: list[str]) -> float:
    """User and system time of a process with all its threads."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"{'job':22}{'':14}{'seconds':>8}{'limit':>8}")
    for (job, kind), arguments in commands().items():
        seconds = min(processor_seconds(arguments) for _ in range(rounds))
        over = "  too slow" if seconds > LIMITS[kind] else ""
        print(f"{job:22}{kind:14}{seconds:8.2f}{LIMITS[kind]:8.1f}{over}")


if __name__ == "__main__":
    main()
