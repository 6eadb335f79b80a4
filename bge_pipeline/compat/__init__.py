"""The two classes that applications of the first version call, with the names and shapes they had there.

`embedding_generator` turns texts into lists of floats, through EmbeddingsService, which runs a model here or asks an
OpenAI-compatible endpoint. `segments_database` writes and looks up a transcript application's rows, on `connections`
that recover by themselves; `segment_rows` fits segments to columns. Nothing here loads a model before a text is to be
embedded.
"""
