"""What a recipe's YAML becomes."""
