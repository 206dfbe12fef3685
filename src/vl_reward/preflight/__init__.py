"""Which rows can be used, known before a model works on any of them."""
