"""The edges of the pipeline: each stage reads files, calls pure code, and writes files."""
