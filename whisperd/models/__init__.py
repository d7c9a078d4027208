"""Models by name: where their files are, whether they are whole, how to get them."""
