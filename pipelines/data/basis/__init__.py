"""Basis step: PCA and Procrustes bases, from one pass over the images and their latents (appendix A.1, A.2)."""
