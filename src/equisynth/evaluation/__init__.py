"""Measures of predictions: pure metrics, the evaluation on aligned labels, FID."""
