"""Everything that is done with a finished student or a teacher: sample, draw, measure, export."""
