"""Conversations and images to tensors: the one path that training, scoring and sampling share."""
