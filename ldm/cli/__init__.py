"""Between a shell and the tasks: flags, errors, progress, saving. Only this package prints.

Nothing here imports torch when it is imported, so that `--help` answers at once.
"""
