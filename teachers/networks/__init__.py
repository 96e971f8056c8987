"""Networks of the teachers that this toolkit trains and ships itself."""
