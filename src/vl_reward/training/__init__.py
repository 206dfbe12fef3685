"""Both trainers, and what they need."""
