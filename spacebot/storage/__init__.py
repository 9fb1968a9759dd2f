"""Bytes on disk: one writer per SQLite file."""
