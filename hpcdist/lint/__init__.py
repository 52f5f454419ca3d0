"""The linter for any sbatch script."""
