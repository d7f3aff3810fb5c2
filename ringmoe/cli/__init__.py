"""The command lines: thin mains over the rooms."""
