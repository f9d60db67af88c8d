"""One module per raw source, all ending in the same prepared layout (`prepared.py`) that `patches.py` samples."""
