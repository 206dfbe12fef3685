"""One prompt, many responses, computed once."""
