"""An application on agno's `PgVector`, whose ids are made of the document's and a hash."""

from agno.knowledge.document import Document
from agno.knowledge.embedder.base import Embedder
from programs import run, with_driver


class KnownEmbedder(Embedder):
    def __init__(self, known):
        super().__init__(dimensions=known.dimensions)
        self._known = known

    def get_embedding(self, text):
        return self._known[text]

    def get_embedding_and_usage(self, text):
        return self._known[text], None


def open_store(program, url, known):
    return run(program, url=with_driver(url, "psycopg"), embeddings=KnownEmbedder(known))


def close(opened):
    if opened:
        opened["store"].db_engine.dispose()


def add(opened, known, texts):
    for number, text in texts.items():
        opened["store"].insert(
            f"hash-{number}", [Document(id=f"article-{number}", name=f"article-{number}", content=text)]
        )


def search(opened, known, query, k):
    return [document.content for document in opened["store"].search(query, limit=k)]


def update(opened, known, number, text):
    opened["store"].upsert(f"hash-{number}", [Document(id=f"article-{number}", name=f"article-{number}", content=text)])


def delete(opened, known, number):
    opened["store"].delete_by_name(f"article-{number}")
