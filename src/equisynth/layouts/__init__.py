"""Kinds of raw data, one file each: where they come from and how the stages prepare them."""
