"""The steps of the pipeline, on Ray: each has settings, a function that builds it, and an artifact."""

import gc
import importlib.util
import logging
import os
import sys

if importlib.util.find_spec("ray") is None:
    raise ImportError("pipelines needs the libraries of the cluster: pip install 'asymflow[cluster]'")

# Hide the progress bars per loaded model (transformers) and per artifact (MLflow). The variables are read on import.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import asymflow as asymflow  # its torchvision shim must come before any import of diffusers in a step's module

# Imported objects are permanent; full garbage collections over them took a quarter of the import time.
gc.set_threshold(*gc.get_threshold()[:2], 1000)

# peft imports bitsandbytes (for its own quantized layers, unused here) and with it torch's compiler: one second per
# start. It is hidden until `asymflow.models.quantized.import_bitsandbytes`.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # without a GPU it warns about missing kernels
