"""An application on mem0's store of memories, as `Memory` uses it: the vectors come from an embedder of its own."""

from uuid import UUID

from programs import run


def open_store(program, url, known):
    return run(program, url=url)


def close(opened):
    if opened:
        opened["store"].connection_pool.close()


def add(opened, known, texts):
    opened["store"].insert(
        [known[text] for text in texts.values()],
        [{"data": text} for text in texts.values()],
        [_id(number) for number in texts],
    )


def search(opened, known, query, k):
    return [found.payload["data"] for found in opened["store"].search(query, known[query], top_k=k)]


def update(opened, known, number, text):
    opened["store"].update(_id(number), known[text], {"data": text})


def delete(opened, known, number):
    opened["store"].delete(_id(number))


def _id(number):
    return str(UUID(int=int(number)))
