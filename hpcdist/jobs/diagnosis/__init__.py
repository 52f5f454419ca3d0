"""Why a job failed: evidence gathered, log patterns, rules."""
