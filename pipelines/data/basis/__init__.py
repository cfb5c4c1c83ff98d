"""Bases: PCA and Procrustes with its scale, from one pass over the pictures and their latents (appendix A.1, A.2)."""
