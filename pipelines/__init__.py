"""The steps of the pipeline, on Ray: each module has a config, a function that runs the step, and its artifact."""

import logging

import asymflow as asymflow  # its torchvision remedy must come before any import of diffusers in a step's module

# peft imports it where it is installed, and on a machine without a GPU it then speaks of kernels that nobody asked for
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
