"""An application on vecs, which keeps its texts in the metadata."""

from programs import run


def open_store(program, url, known):
    return run(program, url=url)


def close(opened):
    if opened:
        opened["client"].disconnect()


def add(opened, known, texts):
    opened["store"].upsert([(str(number), known[text], {"text": text}) for number, text in texts.items()])


def search(opened, known, query, k):
    found = opened["store"].query(known[query], limit=k, include_metadata=True)
    return [metadata["text"] for _, metadata in found]


def update(opened, known, number, text):
    add(opened, known, {number: text})


def delete(opened, known, number):
    opened["store"].delete([str(number)])
