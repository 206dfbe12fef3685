"""Scored samples to preference pairs."""
