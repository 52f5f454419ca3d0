"""A submitted job: its status, efficiency, diagnosis and advice; the Python API."""
