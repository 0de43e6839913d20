"""Data sets: each offers `batch(generator, batch_size) -> (images, captions)`, or these and extra inputs."""
