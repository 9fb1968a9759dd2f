"""The durable log of one agent: messages, their ledger, turns, runs, results, cost."""
