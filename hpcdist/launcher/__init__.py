"""What runs on the node around the program: rank process, sampling, requeue, staging; the local scheduler."""
