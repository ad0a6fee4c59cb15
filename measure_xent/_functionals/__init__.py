"""What is asked of measures: information, divergences, likelihood, scores, calibration, codes. Knows all measures."""
