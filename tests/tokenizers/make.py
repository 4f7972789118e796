#!/usr/bin/env python3
"""Golden token ids and rendered conversations, committed beside this script.

    pip install sentencepiece tokenizers transformers gguf llama-cpp-python
    LYNX_SHARED=../shared python tests/tokenizers/make.py

Trains tiny vocabularies on Alice in Wonderland (shared/data/text/alice.txt) and a few lines of other scripts, and writes
  spm.json     SentencePiece BPE vocabularies with the ids of the sentencepiece library; llama.cpp must agree, or the case says what it gives
  bpe.json     one byte-level BPE vocabulary with the ids that llama.cpp gives for every tokenizer.ggml.pre in PRE
  hf.json      tokenizer.json files as published ones are made, with the ids of the transformers library
  tok512.json  ids of stories260K's tokenizer by the algorithm of llama2.c, written out in Python
  chat.json    conversations rendered by transformers' apply_chat_template
"""
import datetime
import io
import json
import os
import struct
import tempfile

import gguf
import sentencepiece
from llama_cpp import Llama
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.environ.get("LYNX_SHARED", os.path.join(HERE, "../../../shared"))
OTHER = """Die Straße führte über den Fluß; größer als je zuvor, «natürlich». Ça va très bien, merci à l'été.
Привет, мир! Как дела сегодня? 今天天气很好，我们去公园吧。 日本語のテキストです。 안녕하세요 세계 مرحبا بالعالم नमस्ते दुनिया
def f(x):\n    return x + 1  # 12345 67 890\n\tif (x != 0) { y = "a'b"; }\r\n3.14159 1,000,000 ½ ² ٣ x1y22z333
🦊🦊 emoji 👩‍👩‍👧 and e\u0301 combining, I'll we've they're DON'T It's\n"""

NASTY = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "a", " a", "a ", "  a  b   c    d", "Hello, world!", " Hello", "hello\nworld",
    "hello \n \n world\n\n\n", "Once upon a time, there was a little girl named Lily.", "12345", "1 22 333 4444 55555 666666", "3.14159e-10",
    "x1y22z333", "I'll we've they're DON'T it's I'M 'tis", "camelCaseWORD snake_case kebab-case", "!!??...;;::", "$100 + 5% = <b>^~|`</b>",
    "é", "e\u0301", "naïve café über Straße", "Привет, мир!", "今天天气很好。", "日本語のテキスト", "안녕하세요 세계", "مرحبا بالعالم", "नमस्ते",
    "🦊", "a🦊b", "👩‍👩‍👧 🏳️‍🌈", "\u200b\u00a0\u3000x", "▁", "a▁b ▁▁c", "<s>", "</s>x", "<0x41>", "<unk><|endoftext|>", "½ ² ٣ Ⅷ ①",
    "\u0000\u0001\u007f", "\ufeffbom", "def f(x):\n    return x + 1\n\n\tif x:\r\n\t\tpass", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\U0010ffff", "the the the  the",
    "Aßß ÉÀ ǅ ĳ", "tab\tand\u000bvt\u000cff\u0085nel", "hello_world/path\\to\\file.txt?x=1&y=2", "日本🦊mixed текст 12 ab",
]


def corpus():
    with open(os.path.join(SHARED, "data/text/alice.txt"), encoding="utf-8") as f:
        return f.read()[:120000] + "\n" + OTHER * 8


def llama_cpp(keys, texts):
    """Ids of each text in llama.cpp, for a vocabulary given as GGUF keys; control tokens are text."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "v.gguf")
        w = gguf.GGUFWriter(path, "llama")
        w.add_context_length(64), w.add_embedding_length(8), w.add_block_count(1), w.add_feed_forward_length(8), w.add_head_count(1)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_tokenizer_model(keys["model"]), w.add_tokenizer_pre(keys.get("pre", "default"))
        w.add_token_list([t.encode() for t in keys["tokens"]])
        if keys.get("scores"):
            w.add_token_scores(keys["scores"])
        w.add_token_types(keys["types"])
        if "merges" in keys:
            if keys["merges"]:
                w.add_token_merges(keys["merges"])
            else:
                w.kv_data[0]["tokenizer.ggml.merges"] = gguf.GGUFValue([], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
        for name in ("add_space_prefix", "add_bos_token"):
            if name in keys:
                w.add_bool("tokenizer.ggml." + name, keys[name])
        for name in ("bos", "eos", "unknown", "padding"):
            if keys.get(name) is not None:
                w.add_uint32(f"tokenizer.ggml.{name}_token_id", keys[name])
        w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
        model = Llama(path, vocab_only=True, verbose=False)
        return [[int(i) for i in model.tokenize(t.encode(), add_bos=False, special=False)] if t else [] for t in texts]


def write(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        # A case a line, and no longer.
        text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
        f.write(text.replace('{"text"', '\n{"text"').replace('{"name"', '\n{"name"') + "\n")


def spm():
    vocabularies = []
    common = dict(model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
                  allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1, character_coverage=0.9995)
    variants = {
        "llama": dict(vocab_size=500, byte_fallback=True, add_dummy_prefix=True),
        "gemma": dict(vocab_size=480, byte_fallback=True, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
                      user_defined_symbols=["\n", "\n\n", "▁▁", "▁▁▁", "<b>"]),
        "no-bytes": dict(vocab_size=300, byte_fallback=False, add_dummy_prefix=True, character_coverage=1.0),
    }
    for name, options in variants.items():
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus().split("\n")), model_writer=out, **{**common, **options})
        sp = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
        tokens, scores, types = [], [], []
        for i in range(sp.get_piece_size()):
            kind = 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 5 if sp.is_unused(i) else 6 if sp.is_byte(i) else 1
            piece = sp.id_to_piece(i)
            if kind == 1 and piece in options.get("user_defined_symbols", []):
                kind, piece = 4, piece.replace("▁", " ")
            tokens.append(piece), scores.append(sp.get_score(i)), types.append(kind)
        keys = dict(model="llama", tokens=tokens, scores=scores, types=types, add_space_prefix=options["add_dummy_prefix"],
                    bos=sp.bos_id(), eos=sp.eos_id(), unknown=sp.unk_id())
        ids = [sp.encode(t) for t in NASTY]
        # llama.cpp ends the program at a character that it has no bytes for.
        cpp = llama_cpp(keys, NASTY) if options["byte_fallback"] else ids
        cases = [{"text": t, "ids": i} if i == c else {"text": t, "ids": i, "llama.cpp": c} for t, i, c in zip(NASTY, ids, cpp)]
        print(name, "differences to llama.cpp:", [c for c in cases if "llama.cpp" in c])
        vocabularies.append({"name": name, **keys, "decoded": [sp.decode(i) for i in ids], "cases": cases})
    write("spm.json", vocabularies)


PRE = ["gpt-2", "llama-bpe", "qwen2", "dbrx", "smollm", "falcon", "default", "gpt-4o", "tekken", "seed-coder", "deepseek-coder", "deepseek-v3", "superbpe"]


def byte_level(size, pre):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator([corpus()], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    return t


def bpe():
    # Trained across words, so that where a text is cut shows in its ids.
    t = byte_level(600, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    m = json.loads(t.to_str())["model"]
    tokens = sorted(m["vocab"], key=m["vocab"].get)
    merges = [" ".join(p) for p in m["merges"]]
    # A vocabulary that was trained on one text without cuts spans words and lines; half of it trained with GPT-2's cuts.
    words = json.loads(byte_level(500, pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str())["model"]
    known = set(tokens)
    for left, right in words["merges"]:
        if left + right not in known and left in known and right in known:
            known.add(left + right), tokens.append(left + right), merges.append(f"{left} {right}")
    for joined in ["1 2", "12 3", "2 2", "3 3", "33 3", "4 4", "44 4", "Ċ Ċ", "Ġ Ġ", "Ġ Ċ", "! !", "! Ċ", ". .", ".. .", "/ p", "' s", "I '", "? ?"]:
        left, right = joined.split()
        if left + right not in known and left in known and right in known:
            known.add(left + right), tokens.append(left + right), merges.append(joined)
    tokens += ["<|endoftext|>", "<|im_start|>", "<tool>"]
    types = [1] * (len(tokens) - 3) + [3, 3, 4]
    texts = NASTY + ["a<tool>b <tool> <|im_start|>user"]
    value = {"model": "gpt2", "tokens": tokens, "merges": merges, "types": types, "eos": len(tokens) - 3, "bos": len(tokens) - 3, "pre": []}
    for pre in PRE:
        ids = llama_cpp({**value, "pre": pre}, texts)
        value["pre"].append({"name": pre, "ids": ids})
    value["texts"] = texts
    write("bpe.json", value)


GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
QWEN2 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def split_and_bytes(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def special(*names):
    return [AddedToken(n, special=True, normalized=False) for n in names]


def hf():
    files = []

    def add(name, t, config):
        fast = PreTrainedTokenizerFast(tokenizer_object=t, clean_up_tokenization_spaces=False, **config)
        cases = [{"text": x, "ids": fast.encode(x, add_special_tokens=False)} for x in NASTY]
        files.append({"name": name, "json": t.to_str(), "config": config, "with_special": fast.encode("Hello"), "cases": cases})

    t = byte_level(320, pre_tokenizers.ByteLevel(add_prefix_space=False))
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens(special("<|endoftext|>"))
    add("gpt2", t, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})

    t = byte_level(320, split_and_bytes(QWEN2))
    t.normalizer, t.decoder = normalizers.NFC(), decoders.ByteLevel()
    t.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    t.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    add("qwen2", t, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})

    t = byte_level(320, split_and_bytes(LLAMA3))
    t.model.ignore_merges = True
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens(special("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"))
    bos = t.token_to_id("<|begin_of_text|>")
    t.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)])
    add("llama3", t, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})

    with open(os.path.join(HERE, "spm.json"), encoding="utf-8") as f:
        vocabularies = {v["name"]: v for v in json.load(f)}
    for name in ("llama", "gemma"):
        v = vocabularies[name]
        prefix = v["add_space_prefix"]
        written = [t.replace(" ", "▁") if k == 4 else t for t, k in zip(v["tokens"], v["types"])]
        vocab = {t: i for i, t in enumerate(written)}
        # Gemma's file has merges for its runs of spaces.
        pieces = [t for t, k in zip(written, v["types"]) if k == 1 or k == 4 and "▁" in t]
        merges = []
        for p in pieces:
            found = [(p[:i], p[i:]) for i in range(1, len(p)) if p[:i] in vocab and p[i:] in vocab]
            merges += [(v["scores"][vocab[p]], l, r) for l, r in sorted(found, key=lambda x: (vocab[x[0]], vocab[x[1]]))]
        merges = [(l, r) for _, l, r in sorted(merges, key=lambda m: -m[0])]
        unk = written[v["unknown"]]
        t = Tokenizer(models.BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
        steps = [normalizers.Prepend("▁")] if prefix else []
        t.normalizer = normalizers.Sequence(steps + [normalizers.Replace(" ", "▁")])
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + [decoders.Strip(" ", 1, 0)] * prefix)
        t.add_special_tokens(special(*[w for w, k in zip(written, v["types"]) if k in (2, 3)]))
        t.add_tokens([AddedToken(w, special=False, normalized=False) for w, k in zip(v["tokens"], v["types"]) if k == 4 and "▁" not in w and " " not in w])
        bos = written[v["bos"]]
        t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, v["bos"])])
        add(name, t, {"bos_token": bos, "eos_token": written[v["eos"]]})
    write("hf.json", files)


def tok512():
    with open(os.path.join(SHARED, "data/models/stories260K/tok512.bin"), "rb") as f:
        data = f.read()
    at, vocab, scores = 4, [], []
    while at < len(data):
        score, n = struct.unpack_from("<fi", data, at)
        vocab.append(data[at + 8:at + 8 + n]), scores.append(score)
        at += 8 + n
    index = {}
    for i, v in enumerate(vocab):
        index.setdefault(v, i)

    def encode(text):
        ids = [index[b" "]] if text else []
        for c in text:
            b = c.encode()
            ids += [index[b]] if b in index else [x + 3 for x in b]
        while True:
            best = None
            for i in range(len(ids) - 1):
                joined = index.get(vocab[ids[i]] + vocab[ids[i + 1]])
                if joined is not None and (best is None or scores[joined] > best[0]):
                    best = (scores[joined], joined, i)
            if best is None:
                return ids
            ids[best[2]:best[2] + 2] = [best[1]]

    texts = [t for t in NASTY if "\0" not in t]
    write("tok512.json", [{"text": t, "ids": encode(t)} for t in texts])


TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "chatml-default-system": "{%- if messages[0].role == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n{%- else %}\n"
              "    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n"
              "    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) or (message.role == \"assistant\" and not message.tool_calls) %}\n"
              "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
              "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
               "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
               "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
               "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
               "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
               "{% else %}{% set content = message['content'] %}{% endif %}"
               "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
               "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama-3": "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n        {%- set date_string = strftime_now(\"%d %b %Y\") %}\n"
               "    {%- else %}\n        {%- set date_string = \"26 Jul 2024\" %}\n    {%- endif %}\n{%- endif %}\n"
               "{#- A system message first. #}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n"
               "{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n{{- \"Today Date: \" + date_string + \"\\n\\n\" }}\n"
               "{{- system_message }}\n{{- \"<|eot_id|>\" }}\n{%- for message in messages %}\n"
               "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n"
               "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
             "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
             "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}",
    "mistral": "{%- if messages[0][\"role\"] == \"system\" %}\n    {%- set system_message = messages[0][\"content\"] %}\n    {%- set loop_messages = messages[1:] %}\n{%- else %}\n"
               "    {%- set loop_messages = messages %}\n{%- endif %}\n{%- set ns = namespace() %}\n{%- set ns.index = 0 %}\n{%- for message in loop_messages %}\n"
               "    {%- if not (message.role == \"tool\") %}\n        {%- if (message[\"role\"] == \"user\") != (ns.index % 2 == 0) %}\n"
               "            {{- raise_exception(\"roles must alternate\") }}\n        {%- endif %}\n        {%- set ns.index = ns.index + 1 %}\n    {%- endif %}\n{%- endfor %}\n"
               "{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if message[\"role\"] == \"user\" %}\n        {%- if loop.last and system_message is defined %}\n"
               "            {{- \"[INST] \" + system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}\n        {%- else %}\n            {{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}\n"
               "        {%- endif %}\n    {%- elif message[\"role\"] == \"assistant\" %}\n        {{- \" \" + message[\"content\"] + eos_token }}\n    {%- endif %}\n{%- endfor %}\n",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
              "{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
              "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
              "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "blocks": "  {# indented comment #}\n  {% for m in messages %}\n    {{ loop.index }}/{{ loop.length }} {{ m.role|title }}:\n      {{ m.content | replace('\\n', ' ') }}\n    {% if not loop.last %}\n --\n    {% endif %}\n"
              "  {%- endfor +%}\n{{ tools | tojson(indent=2) if tools else '' }}\n{% for m in messages if m.role != 'user' %}{{ m | tojson }}{% else %}none{% endfor %}\n\n",
    "words": "{% macro show(m) %}<{{ m['role'][:1]|upper }}>{{ m.content.split(' ')|join('_') }}{% endmacro %}{% for m in messages %}"
             "{% if m.content is string and 'o' in m.content %}{{ show(m) }}{% else %}{{ m.content|length }}{% endif %}"
             "{{ [m.role, 1, true, none]|map('string')|join(',') }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}"
             "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages|rejectattr('role', 'equalto', 'user')|map(attribute='content')|first }}"
             "{{ (messages|last).content.lstrip().rstrip('.') }}{{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ -7 % 3 }}{{ messages[::-1][0].role }}{{ 'a' ~ 1 }}",
}

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
CONVERSATIONS = [
    [(USER, "Hello, who are you?")],
    [(USER, " spaces around \n"), (ASSISTANT, "  An answer.  "), (USER, "And\n\nlines, <b>&amp;</b> 'quotes' \"two\" 🦊")],
    [(SYSTEM, "You are a fox."), (USER, "Hi"), (ASSISTANT, "Yip."), (USER, "Why?")],
    [(USER, ""), (USER, "twice in a row")],
]


def chat():
    cases = []
    t = Tokenizer(models.BPE({"a": 0, "<s>": 1, "</s>": 2}, []))
    fast = PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>")

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 6, 15, 4, 9)

    import transformers.utils.chat_template_utils as utils
    utils.datetime = Fixed
    for name, template in TEMPLATES.items():
        rendered = []
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                messages_ = [{"role": r, "content": c} for r, c in messages]
                try:
                    text = fast.apply_chat_template(messages_, chat_template=template, tokenize=False, add_generation_prompt=prompt)
                    rendered.append({"text": text})
                except Exception as e:
                    rendered.append({"text": None, "error": str(e)})
        cases.append({"name": name, "template": template, "rendered": rendered})
    write("chat.json", {"conversations": CONVERSATIONS, "templates": cases})


if __name__ == "__main__":
    spm(), bpe(), hf(), tok512(), chat()
