"""Geometry of images as tensors (batch, channel, *spatial): grids, warping, affine matrices, masked images.

Displacement fields are (batch, n_dims, *spatial) in voxels, component order = axis order. Imports nothing else of the
package.
"""
