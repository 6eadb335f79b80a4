"""A transcript application in small: its corpus, its tables, its questions. The stand-in for GTE-Qwen2 lives here too."""
