"""An application on LlamaIndex, whose documents have ids of its own beside the table's."""

import asyncio

from llama_index.core import Document
from llama_index.core.embeddings import BaseEmbedding
from programs import run, with_driver


class KnownEmbedding(BaseEmbedding):
    known: dict

    def _get_text_embedding(self, text):
        return self.known[text]

    def _get_query_embedding(self, query):
        return self.known[query]

    async def _aget_query_embedding(self, query):
        return self.known[query]


def open_store(program, url, known):
    embeddings = KnownEmbedding(known={})
    embeddings.known = known
    return run(program, url=with_driver(url, "psycopg2"), async_url=with_driver(url, "asyncpg"), embeddings=embeddings)


def close(opened):
    if opened:
        asyncio.run(opened["vectors"].close())


def add(opened, known, texts):
    for number, text in texts.items():
        opened["store"].insert(Document(text=text, id_=f"article-{number}"))


def search(opened, known, query, k):
    return [found.node.get_content() for found in opened["store"].as_retriever(similarity_top_k=k).retrieve(query)]


def update(opened, known, number, text):
    opened["store"].update_ref_doc(Document(text=text, id_=f"article-{number}"))  # deletes and inserts


def delete(opened, known, number):
    opened["store"].delete_ref_doc(f"article-{number}")
