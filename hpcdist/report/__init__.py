"""Compare a study's layouts: scaling, prediction, verdict; text, CSV, HTML and plots."""
