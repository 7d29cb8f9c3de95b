"""Experiments: methods by name, the baselines they are compared with, shared jobs, one table."""
