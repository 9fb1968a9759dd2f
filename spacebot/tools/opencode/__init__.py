"""OpenCode, a coding agent that workers may be."""
