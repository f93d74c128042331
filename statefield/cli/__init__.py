"""The command line: parses, calls a task, prints. Nothing below this floor prints."""
