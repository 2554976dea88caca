"""Numbers about one example or one preference pair."""
