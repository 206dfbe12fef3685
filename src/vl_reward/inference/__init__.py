"""A reward model and a policy as functions, and the store that their work is kept in."""
