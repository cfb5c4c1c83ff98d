"""Write a finetune's moving average as adapter files and register them; of a run that still trains, from its newest
checkpoint. CONFIG and the overrides are those of the finetune."""

import argparse
import json
import sys

from mlflow.exceptions import MlflowException

from pipelines.artifacts import MissingArtifact
from pipelines.config import ConfigError, load_config
from pipelines.finetune import STEP
from pipelines.finetune.export import export_run
from pipelines.storage import StorageError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("settings", metavar="dotted.key=value", nargs="*")
    parser.add_argument("--step", type=int, help="of a checkpoint (default: the last)")
    where = "default: the finished artifact, or for a checkpoint exports/ID/STEP in the storage"
    parser.add_argument("--out", default="", help=f"folder or s3:// URI to make `adapter/` in ({where})")
    parser.add_argument("--no-register", action="store_true", help="only write the files")
    args = parser.parse_intermixed_args()
    try:
        settings = load_config(STEP.settings, args.config, args.settings)
        done = export_run(STEP, settings, args.step, args.out, registering=not args.no_register)
    except (ConfigError, MissingArtifact, StorageError, MlflowException, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    print(json.dumps(done))


if __name__ == "__main__":
    main()
