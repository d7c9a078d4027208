"""Models by name: where their files are, whether they are whole, how to get them."""

FAKE = "fake"  # the deterministic engine of whisperd.testing; it has no files
