"""Public multilingual benchmarks: their rows as published, their scoring as published and as it should be."""
