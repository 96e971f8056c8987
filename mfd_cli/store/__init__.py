"""The only code that writes or knows the names inside a run folder."""
