"""Image-to-image translation from paired but non-aligned images of two modalities."""
