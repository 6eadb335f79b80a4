import json
import shutil
from dataclasses import replace

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


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.fixture
def declared(bundled, tmp_path):
    """The bundled model's files, but for what they say of the tokens around a text."""

    def make(post_processor=None, **words):
        folder = shutil.copytree(
            bundled.files.folder, tmp_path / "declared", ignore=shutil.ignore_patterns("*.safetensors")
        )
        written = bundled.files.tokenizer_config | {"tokenizer_class": "PreTrainedTokenizerFast"} | words
        (folder / "tokenizer_config.json").write_text(json.dumps(written))
        definition = json.loads((folder / "tokenizer.json").read_text())
        if post_processor != "its own":
            (folder / "tokenizer.json").write_text(json.dumps(definition | {"post_processor": post_processor}))
        return replace(bundled.files, folder=folder)

    return make


@pytest.mark.parametrize("present", [None, BYTE_LEVEL], ids=["nothing", "byte level"])
@pytest.mark.parametrize("end", ["[MASK]", {"__type": "AddedToken", "content": "[MASK]"}], ids=["text", "object"])
def test_a_text_ends_with_the_token_that_the_model_was_trained_to_pool(declared, end, present):
    ending = Tokenizer(declared(present, add_eos_token=True, eos_token=end))
    tokens, truncated = ending.texts(["word", "word " * 256, "word " * 255])
    assert tokens.ids[:2].tolist() == [2773, 103]
    assert tokens.lengths.tolist() == [2, 256, 256]
    assert truncated.tolist() == [False, True, False]
    assert tokens.ids[tokens.offsets[1:] - 1].tolist() == [103, 103, 103]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"post_processor": None, "eos_token": "[MASK]"}, [2773]),
        ({"post_processor": "its own", "eos_token": "[MASK]", "add_eos_token": True}, [101, 2773, 102]),
    ],
    ids=["not declared", "ends otherwise already"],
)
def test_nothing_is_added_that_the_files_do_not_ask_for(declared, files, expected):
    assert Tokenizer(declared(**files)).texts(["word"])[0].ids.tolist() == expected
