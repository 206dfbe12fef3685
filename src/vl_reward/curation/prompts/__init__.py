"""Prompts of public sets, preference sets and own files to one set."""
