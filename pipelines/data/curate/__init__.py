"""Curate: img2dataset shards to clean pictures of one size a file, and everything else set aside with its reason."""
