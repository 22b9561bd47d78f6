"""The command line: a module for each verb or family of verbs, no logic.  A verb's module is imported when the verb is asked for."""

from .app import app, main

__all__ = ["app", "main"]
