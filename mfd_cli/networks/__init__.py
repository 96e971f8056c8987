"""What is trained: student, auxiliary and averaged student."""
