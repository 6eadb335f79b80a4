"""The query path: dense, lexical and hybrid search over the target table, reranking, query expansion.

`retriever` is the door. Under it: `column` (what the searched column holds), `encoders` (whose vectors fit), `query` (what
was typed), `statements` (the SQL), `wire` (settings and statement in one message), `scan` (probes, ef_search), `certainty` and
`reranking`, `expansion` and `chat`. Beside it: `text_index`. What a stage brings, and the recall of the index, is measured in
`quality`.
"""

from bge_pipeline.search.results import RerankMode, SearchMode, SearchResponse, SearchResult
from bge_pipeline.search.retriever import Retriever
from bge_pipeline.search.text_index import create_text_index

__all__ = ["RerankMode", "Retriever", "SearchMode", "SearchResponse", "SearchResult", "create_text_index"]
