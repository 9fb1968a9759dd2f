"""The owner's wishes: config.toml and its live snapshot."""
