"""Kinds of image files beside NIfTI volumes and TIFF slides, and what all of them are called."""
