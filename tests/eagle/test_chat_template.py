"""Rendering a conversation: keywords of the template, and what no text can hold."""

import argparse

import pytest

from eagle import chat_template


class Tokenizer:
    chat_template = "{{ messages }}{% if enable_thinking is defined and not enable_thinking %}...{% endif %}"

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, **keywords):
        return f"{messages} {add_generation_prompt} {keywords}"


ASK = [{"role": "user", "content": "Hi"}]


def test_keywords_reach_the_template():
    assert chat_template.render(Tokenizer(), ASK, {"enable_thinking": False}).endswith(
        "True {'enable_thinking': False}"
    )
    assert chat_template.fixed({"a": 1}) == {**chat_template.FIXED, "a": 1}
    assert chat_template.shown({}) == ""
    assert chat_template.shown({"b": 1, "a": False}) == ' {"a": false, "b": 1}'


def test_a_keyword_that_nothing_reads_is_refused():
    chat_template.check_keywords(Tokenizer(), {"enable_thinking": False})
    for name in ("thinking", "enable_thinkin", "documents"):
        with pytest.raises(ValueError, match=f"keyword '{name}': the target's chat template does not read it"):
            chat_template.check_keywords(Tokenizer(), {name: 1})


@pytest.mark.parametrize("text", ["{", "3", '["a"]', '{"tokenize": true}', '{"messages": []}', "[" * 99999])
def test_what_is_no_json_object(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a JSON object|not JSON"):
        chat_template.keywords_of(text)


@pytest.mark.parametrize("text", ["\ud83d", "so \udc00", "\udfff\ud800"])
def test_half_a_surrogate_pair_is_named(text):
    messages = [*ASK, {"role": "assistant", "content": text}]
    with pytest.raises(ValueError, match=r"message 1 \(assistant\) holds half of a surrogate pair, '\\ud"):
        chat_template.render(Tokenizer(), messages)
    assert chat_template.render(Tokenizer(), [{"role": "user", "content": "🙂"}])


def test_without_a_template():
    with pytest.raises(ValueError, match="no chat template"):
        chat_template.render(object(), ASK)


def test_a_head_trained_with_other_keywords_is_said(tmp_path, capsys):
    chat_template.warn_of_others(None, {})
    chat_template.warn_of_others(tmp_path, {"a": 1})  # a head from elsewhere: not known
    chat_template.record_beside(tmp_path, {"enable_thinking": False})
    chat_template.warn_of_others(tmp_path, {"enable_thinking": False})
    assert capsys.readouterr().err == ""
    chat_template.warn_of_others(str(tmp_path), {})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert 'trained on prompts with chat template keywords {"enable_thinking": false}, used with {}' in said
