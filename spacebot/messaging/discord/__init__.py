"""Discord: its adapter, what its events mean and what is sent to it."""
