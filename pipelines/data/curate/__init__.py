"""Curate step: filter img2dataset shards into files of one image size each, and list rejected rows with a reason."""
