"""hpcdist.toml, job files and options, checked."""
