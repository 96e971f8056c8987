"""Assets of the digits teacher; README.md tells where they come from."""
