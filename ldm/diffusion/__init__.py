"""The mathematics of diffusion: noise schedule, predictions, guidance, conditioning and loss.

Nothing here knows of networks, text or files; it imports no other part of the package but the errors.
"""
