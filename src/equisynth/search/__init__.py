"""Search for settings with Optuna: studies that several processes and machines share and any of them can continue."""
