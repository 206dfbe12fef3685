"""What a training run needs of a GPU's memory, before anything is loaded."""
