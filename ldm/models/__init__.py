"""Networks and model classes; their parameters keep the LDM key names."""
