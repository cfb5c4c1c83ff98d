"""The steps of the pipeline, on Ray: each module has a config, a function that runs the step, and its artifact."""

import asymflow as asymflow  # its torchvision remedy must come before any import of diffusers in a step's module
