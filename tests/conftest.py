import asymflow as asymflow  # its torchvision remedy must come before tests import diffusers or lpips
