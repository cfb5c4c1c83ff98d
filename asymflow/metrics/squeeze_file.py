"""File of the SqueezeNet for Fréchet distances; importing this module does not load torch."""

FILE = "perceptual_squeeze.safetensors"
NEEDED = f"a safetensors file of SqueezeNet 1.1's features, such as models/toy_klein/{FILE}"
