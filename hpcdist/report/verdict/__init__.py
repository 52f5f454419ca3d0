"""The verdict of a study: a few sentences with their evidence."""
