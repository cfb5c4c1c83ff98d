"""What a SqueezeNet for Fréchet distances is read from; importing this loads no torch."""

FILE = "perceptual_squeeze.safetensors"
NEEDED = f"a safetensors file of SqueezeNet 1.1's features, such as models/toy_klein/{FILE}"
