"""AsymFlow: turn a pretrained latent flow model into a pixel flow model. Import the modules you need."""

from asymflow import torchvision_remedy

torchvision_remedy.apply_at_import()
