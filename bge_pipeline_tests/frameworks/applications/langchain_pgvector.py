"""An application on LangChain's older `PGVector`, whose ids are texts."""

from langchain_embeddings import KnownEmbeddings
from programs import run, with_driver


def open_store(program, url, known):
    return run(program, url=with_driver(url, "psycopg"), embeddings=KnownEmbeddings(known))


def close(opened):
    if opened:
        opened["store"]._engine.dispose()


def add(opened, known, texts):
    opened["store"].add_texts(list(texts.values()), ids=[f"article/{number}" for number in texts])


def search(opened, known, query, k):
    return [document.page_content for document in opened["store"].similarity_search(query, k=k)]


def update(opened, known, number, text):
    opened["store"].add_texts([text], ids=[f"article/{number}"])  # an upsert


def delete(opened, known, number):
    opened["store"].delete(ids=[f"article/{number}"])
