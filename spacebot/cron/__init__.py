"""Schedules: when a job is due, which jobs there are, and what makes each due time happen at most once."""
