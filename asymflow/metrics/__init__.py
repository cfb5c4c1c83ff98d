"""Metrics, one per file: features, then statistics, then the score."""
