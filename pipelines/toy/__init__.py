"""The demo's images, which need no network, and a tiny FLUX.2 klein trained on them."""
