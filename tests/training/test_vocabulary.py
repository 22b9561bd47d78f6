"""Words that a text encoder learns later: what was known keeps its number and its row, new rows depend on the word alone."""

import pytest
import torch

from ccdiff_cli.recipes import EncodersConfig
from ccdiff_cli.training.encoders import build_encoders
from ccdiff_cli.training.vocabulary import extend_vocabulary, is_word_level, known_words, words_of

CONFIG = EncodersConfig(text_width=16, text_layers=1, image_width=16, image_layers=1, image_size=16, max_words=16)


def test_known_words_keep_their_tokens_and_new_ones_are_told_apart() -> None:
    torch.manual_seed(0)
    tokenizer, text, _, _ = build_encoders(CONFIG, ["a ship."])
    text.eval()
    with torch.no_grad():
        before = text(torch.tensor([tokenizer("a ship")["input_ids"]])).last_hidden_state
        wider, new = extend_vocabulary(tokenizer, text, ["ship", "windmill", "dam"])
        after = text(torch.tensor([wider("a ship")["input_ids"]])).last_hidden_state
        dam, windmill = (text(torch.tensor([wider(f"a {w}")["input_ids"]])).pooler_output for w in ("dam", "windmill"))
    assert new == ["dam", "windmill"] and torch.equal(before, after)
    assert wider.unk_token_id not in wider("a windmill, a dam".replace(",", ""))["input_ids"]
    assert len(wider) == text.get_input_embeddings().num_embeddings and wider.model_max_length == 16
    assert (dam - windmill).abs().max() > 1e-3


def test_a_word_gets_the_same_row_whatever_else_is_new() -> None:
    rows = []
    for words in (["dam"], ["airport", "dam", "zoo"]):
        torch.manual_seed(0)
        tokenizer, text, _, _ = build_encoders(CONFIG, ["a ship."])
        wider, _ = extend_vocabulary(tokenizer, text, words)
        rows.append(text.get_input_embeddings().weight[wider.convert_tokens_to_ids("dam")].detach())
    torch.testing.assert_close(rows[0], rows[1])


def test_nothing_new_changes_nothing() -> None:
    tokenizer, text, _, _ = build_encoders(CONFIG, ["a ship."])
    size = len(tokenizer)
    again, new = extend_vocabulary(tokenizer, text, ["ship"])
    assert again is tokenizer and new == [] and text.get_input_embeddings().num_embeddings == size
    assert is_word_level(tokenizer) and not is_word_level(object())


@pytest.mark.parametrize(
    "name",
    ["Expressway-Service-area", "storage-tank", "Liquid Cargo Ship", "baseballfield", "helipads", "colour-infrared"],
)
def test_classes_of_the_known_sets_have_words(name: str) -> None:
    missing = set(words_of(name)) - set(known_words())
    assert missing <= {"baseballfield"}, "DIOR writes it in one word"
