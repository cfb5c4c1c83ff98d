"""Processor time of a job's answer to --help, an invalid setting and --dry-run, and of an evaluation's imports.

    python benchmarks/startup.py [--rounds 3] [--parts answers,imports]

Each command runs in a separate process. Results are minima over the rounds, since other load only adds time. Imports
are compared with those of torch alone: the driver of an evaluation should not load models, which its workers do.
"""

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FINETUNE = ["jobs/finetune.py", "jobs/configs/finetune/klein_9b.yaml"]
IMPORTS = {
    "torch alone": "torch",
    "driver of an evaluation": "pipelines.evaluate.step, pipelines.evaluate.generate, pipelines.evaluate.subject, "
    "pipelines.evaluate.registry",
    "worker that samples": "pipelines.core.map_items, pipelines.evaluate.generate, pipelines.sample.sampler",
    "worker that scores": "pipelines.core.map_items, pipelines.evaluate.score",
}
DRIVER_LIMIT = 3.0
"""Of the driver's imports over those of torch alone"""
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


def compare_imports(rounds: int) -> None:
    """Print the processor time of imports; medians of rounds in which each is measured once."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(rounds):
        for name, modules in IMPORTS.items():
            seconds[name].append(processor_seconds(["-c", f"import {modules}"]))
    alone = statistics.median(seconds["torch alone"])
    print(f"{'imports':36}{'seconds':>8}{'ratio':>8}{'limit':>8}")
    for name, times in seconds.items():
        median = statistics.median(times)
        limit = f"{DRIVER_LIMIT:8.1f}" if name.startswith("driver") else ""
        print(f"{name:36}{median:8.2f}{median / alone:8.2f}{limit}")


def time_answers(rounds: int) -> None:
    """Print the processor time of the jobs' answers."""
    print(f"{'job':22}{'':14}{'seconds':>8}{'limit':>8}")
    for (job, kind), arguments in commands().items():
        seconds = min(processor_seconds(arguments) for _ in range(rounds))
        over = "  too slow" if seconds > LIMITS[kind] else ""
        print(f"{job:22}{kind:14}{seconds:8.2f}{LIMITS[kind]:8.1f}{over}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="answers,imports", help="which to measure (default: %(default)s)")
    args = parser.parse_args()
    parts = {"answers": time_answers, "imports": compare_imports}
    if unknown := set(args.parts.split(",")) - set(parts):
        parser.error(f"--parts: {', '.join(sorted(unknown))}; known are {', '.join(parts)}")
    for part in args.parts.split(","):
        parts[part](args.rounds)


if __name__ == "__main__":
    main()
