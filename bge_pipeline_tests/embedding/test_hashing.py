import subprocess
import sys

import numpy as np
import pytest

from bge_pipeline.embedding.hashing import HashingEncoder


def encode(*texts: str, **options: int) -> np.ndarray:
    encoder = HashingEncoder(**options)
    return encoder.encode(encoder.tokenize(texts))


def test_a_query_is_nearer_to_a_passage_with_its_words_than_to_another():
    query, passage, other = encode(
        "How do I delete keys of a dictionary?",
        "Deleting a key from dictionaries: use the del statement.",
        "Sockets listen on a network address.",
    )
    assert query @ passage > query @ other + 0.3


def test_endings_and_stop_words_do_not_matter():
    one, other = encode("The key was deleted", "deleting keys")
    assert one @ other == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dimensions", [1, 2, 384, 1_536])
def test_every_vector_has_unit_length_even_without_usable_words(dimensions):
    vectors = encode("", "   ", "the of and", "!!!", "a real sentence", dimensions=dimensions)
    assert vectors.shape == (5, dimensions)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_texts_without_usable_words_still_differ():
    question_mark, exclamation_mark = encode("???", "!!!")
    assert question_mark @ exclamation_mark < 0.5


def test_the_same_text_gives_the_same_bytes_in_another_process():
    script = (
        "from bge_pipeline.embedding.hashing import HashingEncoder; e = HashingEncoder(seed=7);"
        "print(e.encode(e.tokenize(['Deleting keys, twice: deleting', ''])).tobytes().hex())"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1] == encode("Deleting keys, twice: deleting", "", seed=7).tobytes().hex()


def test_a_text_gets_the_same_bytes_alone_and_in_a_crowd():
    crowd = [f"text number {number} about topic {number % 7}" for number in range(5_000)]
    together = encode(*crowd)
    assert together[4_321].tobytes() == encode(crowd[4_321])[0].tobytes()


def test_two_seeds_are_two_spaces():
    assert not HashingEncoder(seed=1).space.is_same_as(HashingEncoder(seed=2).space)
    assert encode("some words", seed=1)[0] @ encode("some words", seed=2)[0] < 0.5


def test_no_texts_give_no_vectors():
    assert encode().shape == (0, 384)


def test_words_are_counted_and_the_excess_is_reported():
    encoder = HashingEncoder()
    tokens = encoder.tokenize(["alpha beta the gamma", "word " * 10_000])
    assert tokens.token_counts.tolist() == [3, 8_192]
    assert tokens.truncated.tolist() == [False, True]
