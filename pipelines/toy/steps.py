"""How long each part of the toy base model is trained."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of each part. The defaults are the shipped weights': about an hour and a quarter on two cores."""

    autoencoder: int = 5500
    text_encoder: int = 800
    flow: int = 16_000
    backbone: int = 2000
