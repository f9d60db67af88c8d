"""The proof: short trainings against a known truth, their measures, and the page that is generated from them."""
