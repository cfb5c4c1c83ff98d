"""Sample: images from prompts and seeds, each a PNG that says how it was made, and one image of all."""
