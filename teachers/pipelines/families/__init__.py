"""Families of flow-matching pipelines, each a small class of facts; `teachers.pipelines.family` does the rest."""
