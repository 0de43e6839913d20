"""ControlNet's package by its reference name: `import cldm.model` works without `import ldm` before it.

Its modules are old names of what is in `ldm`; the table is ldm/published_names.json.
"""

import ldm  # noqa: F401  makes the old modules importable
