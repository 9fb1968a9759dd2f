"""The HTTP face: status, process tree, web chat."""
