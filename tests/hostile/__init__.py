"""Hostile input: folders, files and arguments that must end in an answer or in one line, never in a traceback."""
