"""From a video's source to the frames that a model sees, and when they were."""
