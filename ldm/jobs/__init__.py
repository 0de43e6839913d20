"""Carry out requests: read inputs, open models, save and record images, resume interrupted runs."""
