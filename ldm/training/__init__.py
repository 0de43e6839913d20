"""Training: one file a method, on pytorch-lightning, resumable bit for bit."""
