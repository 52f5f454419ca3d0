"""A real multi-node Slurm cluster on one machine: every node a network namespace of its own."""
