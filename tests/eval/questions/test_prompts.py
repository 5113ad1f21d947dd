"""Chat templates: the tokenizer's, FastChat's by family, or a refusal."""

import pytest

from eagle import chat_template
from eval.questions import prompts
from tests.eval.fake import ALPHABET, FakeTokenizer

ASK = [{"role": "user", "content": "Hi?"}]


class Bare(FakeTokenizer):
    chat_template = None
    bos = False

    def __call__(self, text, add_special_tokens):
        self.bos = add_special_tokens
        return super().__call__(text)


def test_the_tokenizers_own_template_comes_first():
    style = prompts.prompt_format(FakeTokenizer(), "lmsys/vicuna-7b-v1.5")
    assert style.name.startswith("tokenizer:")
    assert not style.adds_bos
    assert style.render(ASK) == "<user>Hi?<assistant>"


def test_another_template_has_another_name():
    other = FakeTokenizer()
    other.chat_template = "{{ messages }} "
    assert prompts.prompt_format(other, "x").name != prompts.prompt_format(FakeTokenizer(), "x").name


def test_the_date_in_a_prompt_is_fixed():
    seen = {}

    class Dated(FakeTokenizer):
        def apply_chat_template(self, _, **options):
            seen.update(options)
            return ""

    prompts.prompt_format(Dated(), "x").render(ASK)
    assert seen["date_string"] == chat_template.FIXED["date_string"]


def test_fastchat_by_family():
    pytest.importorskip("fastchat")
    tokenizer = Bare()
    style = prompts.prompt_format(tokenizer, "lmsys/Vicuna-13B-v1.3")
    assert style.name == "fastchat:vicuna_v1.1"
    assert style.render(ASK).endswith("USER: Hi? ASSISTANT:")
    ids = prompts.encode(tokenizer, style, ASK)
    assert ids.shape[0] == 1
    assert tokenizer.bos
    assert "".join(ALPHABET[i] for i in ids[0].tolist()) == style.render(ASK)


def test_conversations_do_not_leak_into_each_other():
    pytest.importorskip("fastchat")
    style = prompts.prompt_format(Bare(), "vicuna")
    assert style.render(ASK) == style.render(ASK)
    longer = [*ASK, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
    assert "ASSISTANT: Yes.</s>USER: Why? ASSISTANT:" in style.render(longer)


@pytest.mark.parametrize("family", sorted(prompts.FASTCHAT_BY_FAMILY))
def test_listed_templates_exist_in_fastchat(family):
    conversation = pytest.importorskip("fastchat.conversation")
    name = prompts.FASTCHAT_BY_FAMILY[family]
    assert conversation.get_conv_template(name).name == name


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="'meta-llama/Llama-3.1-8B': its tokenizer has no chat template"):
        prompts.prompt_format(Bare(), "meta-llama/Llama-3.1-8B")
