"""Text conditions: prompt files, their embeddings computed once, and the teachers that take them."""
