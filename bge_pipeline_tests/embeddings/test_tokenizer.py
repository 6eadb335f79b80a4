import pytest

from bge_pipeline.embedding.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return Tokenizer(bundled.files)


def test_texts_get_the_ids_that_transformers_gives_them(tokenizer, bundled):
    from transformers import AutoTokenizer

    texts = ["Hello, world!", "", "ünïcödé 漢字", "word " * 400]
    tokens, _ = tokenizer.texts(texts)
    expected = AutoTokenizer.from_pretrained(bundled.files.folder)(texts, truncation=True, max_length=256)["input_ids"]
    assert [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)] == expected


def test_a_text_that_is_cut_off_is_reported_and_one_that_just_fits_is_not(tokenizer):
    tokens, truncated = tokenizer.texts(["word " * 254, "word " * 255, "short"])
    assert tokens.lengths.tolist() == [256, 256, 3]
    assert truncated.tolist() == [False, True, False]


def test_a_book_is_read_only_as_far_as_needed(tokenizer):
    page, book = tokenizer.texts(["word " * 300])[0], tokenizer.texts(["word " * 1_000_000])
    assert book[0].ids.tolist() == page.ids.tolist()
    assert book[1].tolist() == [True]


def test_much_empty_space_before_the_words_is_not_taken_for_an_empty_text(tokenizer):
    tokens, truncated = tokenizer.texts([" " * 100_000 + "hello"])
    assert tokens.lengths.tolist() == [3]
    assert truncated.tolist() == [False]


def test_a_saved_tokenizer_is_the_same_tokenizer(tokenizer, bundled, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer(bundled.files, tmp_path / "tokenizer.json")
    texts = ["Hello, world!", "word " * 400]
    assert again.texts(texts)[0].ids.tolist() == tokenizer.texts(texts)[0].ids.tolist()
    assert again.pad_id == tokenizer.pad_id


def test_the_second_text_of_a_pair_has_type_one(tokenizer):
    tokens, truncated = tokenizer.pairs(["a", "b"], ["long text", "word " * 400])
    assert tokens.types[: tokens.offsets[1]].tolist() == [0, 0, 0, 1, 1, 1]
    assert truncated.tolist() == [False, True]


def test_no_texts_give_no_tokens(tokenizer):
    tokens, truncated = tokenizer.texts([])
    assert (len(tokens), len(tokens.ids), len(truncated)) == (0, 0, 0)
