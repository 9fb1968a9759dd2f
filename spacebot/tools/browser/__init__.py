"""The browser that workers use."""
