"""An application on Haystack, which writes documents with the vectors that an embedder of its pipeline gave them."""

from haystack import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.components.retrievers.pgvector import PgvectorEmbeddingRetriever
from programs import run


def open_store(program, url, known):
    opened = run(program, url=url)
    opened["store"].count_documents()  # connects, and makes table and index where they are not there
    return opened


def close(opened):
    if opened:
        opened["store"]._connection.close()


def add(opened, known, texts):
    opened["store"].write_documents([_document(known, number, text) for number, text in texts.items()])


def search(opened, known, query, k):
    retriever = PgvectorEmbeddingRetriever(document_store=opened["store"], top_k=k)
    return [document.content for document in retriever.run(query_embedding=known[query])["documents"]]


def update(opened, known, number, text):
    opened["store"].write_documents([_document(known, number, text)], policy=DuplicatePolicy.OVERWRITE)


def delete(opened, known, number):
    opened["store"].delete_documents([f"article-{number}"])


def _document(known, number, text):
    return Document(id=f"article-{number}", content=text, embedding=known[text])
