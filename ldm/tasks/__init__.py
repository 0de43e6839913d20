"""One file a task: a model and plain inputs in, batches of pictures out. Nothing here prints or saves."""
