"""Study files, variants, job arrays, running and tuning."""
