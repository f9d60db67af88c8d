"""One file is one way to train; ``base`` is the interface they share."""
