"""The demo's own world: pictures that need no network, and a tiny FLUX.2 klein trained on them."""
