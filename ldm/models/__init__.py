"""Networks and model classes; their parameters keep the published key names."""
