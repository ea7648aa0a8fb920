"""state_dict."""
