"""Metrics, one a file: features, then statistics, then the score."""
