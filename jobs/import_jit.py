"""Make a published checkpoint of JiT or AsymFlow-ImageNet an artifact that `evaluate` takes as `pretrained`."""

from pipelines.core.cli import print_plan, print_result, read_settings
from pipelines.core.job_process import job_process
from pipelines.train.pretrain.config import ImportJitSettings


@job_process()
def main() -> None:
    settings, dry = read_settings(ImportJitSettings, __doc__, needs_config=False)
    if dry:
        return print_plan(settings)
    from pipelines.train.pretrain.imported import import_checkpoint

    made = import_checkpoint(settings)
    print_result({"artifact": made.uri, "mlflow_run": None, "metrics": {}})


if __name__ == "__main__":
    main()
