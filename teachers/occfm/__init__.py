"""OccFM: forecasts of a street in three dimensions as a volume of labelled cells, with a small stand-in world."""
