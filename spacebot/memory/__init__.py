"""What an agent knows: a typed graph in SQLite with local embeddings."""
