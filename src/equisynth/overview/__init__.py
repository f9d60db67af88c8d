"""One page that shows all experiments: which model is better, where, and does it look right."""
