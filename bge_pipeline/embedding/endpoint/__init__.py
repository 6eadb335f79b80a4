"""An OpenAI-compatible endpoint as an encoder: EMBEDDING_PROVIDER=openai. Knows HTTP, and no database.

The protocol: https://platform.openai.com/docs/api-reference/embeddings

`encoder` is the door. `address` says which model is asked where, and what its embedding space is; `client` sends one request
until it is answered, `refusals` says what each answer that is none means, `answers` checks the others before they are believed.
`batches` cuts texts into requests, `token_counts` counts and cuts texts, `limits` spaces requests out, `budget` ends what would
cost too much.
"""
