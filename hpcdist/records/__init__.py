"""What jobs, ranks and runs leave on disk."""
