"""Talking to models: messages, dialects, routing, retries."""
