"""No message can forge a special token, and messages without one are encoded as one text."""

from hypothesis import given
from hypothesis import strategies as st

from llmrun.runtime.chat_prompt import encode_chat

from ..cli.fake_engine import SPECIAL, FakeTemplate, FakeTokenizer

TEXTS = st.lists(
    st.sampled_from([*SPECIAL, "<", "|im_end|>", "<|im_<|im_end|>end|>", "hi", " ", "é", "\ufdd0"]), max_size=8
).map("".join)
TOKENIZER = FakeTokenizer()


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_special_tokens_come_from_the_template_only(texts):
    roles = ["system", "user", "assistant"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    ids = encode_chat(FakeTemplate(), TOKENIZER, messages)
    special = [token_id for token_id in ids if token_id >= 256]
    assert special == [256, 257] * len(messages) + [256]
    expected = FakeTemplate().render([{**m, "content": m["content"]} for m in messages])
    assert TOKENIZER.decode(ids, special=True) == expected


def test_bos_comes_once():
    tokenizer = FakeTokenizer()
    tokenizer.add_bos = True
    template = FakeTemplate()
    assert encode_chat(template, tokenizer, [{"role": "user", "content": "x"}])[0] == tokenizer.bos_id
    render = template.render
    template.render = lambda *args, **kwargs: "<s>" + render(*args, **kwargs)
    ids = encode_chat(template, tokenizer, [{"role": "user", "content": "x"}])
    assert ids.count(tokenizer.bos_id) == 1
