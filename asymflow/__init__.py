"""AsymFlow: turn a pretrained latent flow model into a pixel flow model. Import the modules you need."""

from asymflow import torchvision_shim

torchvision_shim.apply_at_import()
