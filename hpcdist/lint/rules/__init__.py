"""The rules of `hpcdist lint`, by what they look at."""
