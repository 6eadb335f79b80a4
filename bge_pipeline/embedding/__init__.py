"""Text to vectors. Knows no database and no Dagster.

The doors: `service` for callers, `loading` from settings to an encoder, `encoder` for what the backfill may ask of one;
`transformer` is an encoder with a model, `hashing` one without, `reranker` the cross-encoder.

A model: `model_folder` finds it, `declarations` reads what its files say, `models` joins the two, `configured` applies the
settings, `trusted_code` guards code of its own, `tokenizer` reads texts, `weights` loads it. `families` says how each family
of networks is run, `networks` holds the graphs, `pooling` makes a vector of states, `tasks` says what a network is run for.

What runs it: `backend` is the interface, `torch_backend` and the room `openvino` are behind it, on texts laid out by
`layouts`; `device`, `memory` and `attention` know the machine. `reference` is sentence-transformers, which `library` loads, and
with which they all must agree: `choosing` takes the first that does and notes it as a `road`, `proof` compares and keeps the
verdicts. `agreement` compares int8 with fp32, `calibration` makes it ready for that.
"""
