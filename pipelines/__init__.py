"""The steps of the pipeline, on Ray: each module has a config, a function that runs the step, and its artifact."""

import gc
import importlib.util
import logging
import os
import sys

if importlib.util.find_spec("ray") is None:
    raise ImportError("pipelines needs the libraries of the cluster: pip install 'asymflow[cluster]'")

# Of no use in a log: transformers shows a bar for each model that it loads, MLflow for each artifact. Read on import.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import asymflow as asymflow  # its torchvision remedy must come before any import of diffusers in a step's module

# What imports make stays. To look through all of it for garbage, again and again, took a quarter of their time.
gc.set_threshold(*gc.get_threshold()[:2], 1000)

# For layers in 8 bits, of which there are none here, peft would import it and with it torch's compiler: a second at
# each start. It stays hidden until the optimizer asks for it.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # without a GPU it speaks of kernels that nobody asked for
