"""Text to vectors. Knows no database and no Dagster.

`service` is the door for callers; `loading` turns settings into an encoder; `encoder` says what the backfill may ask
of one. Under them: `models` (a model's files and what they say), `tokenizer`, `batching`, and the backends that run the
network: `torch_backend` and `openvino_backend`, which alone import those libraries and are imported only when
used. `hashing` is an encoder without a model, `reranker` the cross-encoder.
"""
