"""Telegram: its adapter and what its events mean."""
