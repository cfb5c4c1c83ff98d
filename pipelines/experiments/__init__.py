"""Workflows, sweeps and reports over the steps."""
