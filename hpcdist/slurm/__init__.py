"""Slurm's commands run, and what they print parsed."""
