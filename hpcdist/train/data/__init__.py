"""The training data: read, cut into batches, augmented."""
