"""People's platforms: messages, addresses, adapters."""
