"""Sample step: images from prompts and seeds, each a PNG with its metadata, and an image grid."""
