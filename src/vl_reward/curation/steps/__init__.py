"""The rules by which pairs go or stay: pure functions of texts, images and numbers."""
