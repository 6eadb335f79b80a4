"""An application on LangChain's `PGVectorStore`, whose ids are UUIDs."""

import asyncio
from uuid import UUID

from langchain_embeddings import KnownEmbeddings
from programs import run, with_driver


def open_store(program, url, known):
    return run(program, url=with_driver(url, "psycopg"), embeddings=KnownEmbeddings(known))


def close(opened):
    if opened:
        engine = opened["engine"]
        asyncio.run_coroutine_threadsafe(engine.close(), engine._loop).result()


def add(opened, known, texts):
    opened["store"].add_texts(list(texts.values()), ids=[_id(number) for number in texts])


def search(opened, known, query, k):
    return [document.page_content for document in opened["store"].similarity_search(query, k=k)]


def update(opened, known, number, text):
    opened["store"].add_texts([text], ids=[_id(number)])  # an upsert


def delete(opened, known, number):
    opened["store"].delete(ids=[_id(number)])


def _id(number):
    return str(UUID(int=int(number)))
