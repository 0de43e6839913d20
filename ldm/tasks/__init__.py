"""One file a task: a model and plain inputs in, batches of images out. Nothing here prints or saves."""
