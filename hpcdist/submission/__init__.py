"""From options to a sbatch script to a Slurm job: render, prepare, send, rerun, snapshot."""
