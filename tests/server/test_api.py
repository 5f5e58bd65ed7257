"""OpenAI's completions API, asked by OpenAI's own client and, where bytes matter, by hand."""

import json

import httpx
import numpy as np
import openai
import pytest
from pydantic import ValidationError

import slm
from slm.checkpoint import file as checkpoint
from slm.export.command import export
from slm.server.protocol import CompletionRequest
from tests.server.conftest import Alphabet, alphabet, running


@pytest.fixture(scope="module")
def url():
    with running(alphabet(), max_tokens=100, max_choices=6) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def post(url, **body):
    return httpx.post(f"{url}/v1/completions", json={"model": "m", "temperature": 0, **body})


def chunks(response):
    """The JSON objects of a stream, which must end as it should."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.fixture(scope="module", params=["pt", "onnx"])
def trained_server(request, trained, tmp_path_factory):
    """A server of a model that knows stories, and the model again for itself."""
    path = trained
    if request.param == "onnx":
        base = tmp_path_factory.mktemp("serve") / "best_model"
        export(checkpoint.load(trained), "onnx", base)
        path = base.with_name("best_model.onnx")
    with running(slm.load(path), model_path=str(path)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="any"), slm.load(path)


def test_a_greedy_completion_is_what_the_model_writes(trained_server):
    client, model = trained_server
    expected = model.generate("Once upon a time", temperature=0.0, max_length=150)
    how = {"model": "best_model", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 150}
    whole = client.completions.create(**how)
    assert whole.object == "text_completion"
    assert whole.model == "best_model"
    (choice,) = whole.choices
    assert choice.text == expected
    assert choice.finish_reason in ("stop", "length")
    assert whole.usage.prompt_tokens == len(model.tokenizer.encode("Once upon a time"))
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    pieces = list(client.completions.create(**how, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == expected
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices[0].finish_reason == choice.finish_reason
    assert {piece.id for piece in pieces} == {pieces[0].id}


def test_a_seed_writes_what_it_writes_on_the_command_line(trained_server):
    client, model = trained_server
    how = {"model": "best_model", "prompt": ["Once", "The"], "max_tokens": 30, "n": 2, "seed": 4, "top_p": 0.95}
    texts = [choice.text for choice in client.completions.create(**how, temperature=0.8).choices]
    assert texts[0] == model.generate("Once", seed=4, max_length=30)
    assert texts[2] == model.generate("The", seed=4, max_length=30)
    assert len(set(texts)) == 4
    assert [choice.text for choice in client.completions.create(**how, temperature=0.8).choices] == texts


def test_the_four_kinds_of_prompt(url):
    def texts(prompt):
        return [choice["text"] for choice in post(url, prompt=prompt, max_tokens=2).json()["choices"]]

    assert texts("a") == ["bc"]
    assert texts(["a", "k"]) == ["bc", "lm"]
    assert texts([97, 107]) == ["lm"]
    assert texts([[97], [107, 108]]) == ["bc", "mn"]
    assert texts("") == texts(None) == texts([256]) == texts([[]]) == ["ab"]
    assert [choice["text"] for choice in post(url, max_tokens=2).json()["choices"]] == ["ab"]


def test_sixteen_tokens_by_default_and_as_many_as_asked_for(url):
    answer = post(url, prompt="a").json()
    assert answer["choices"] == [{"index": 0, "text": "bcdefghijklmnopq", "finish_reason": "length", "logprobs": None}]
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 16, "total_tokens": 17}
    assert post(url, prompt="a", max_tokens=0).json()["choices"][0]["text"] == ""
    assert post(url, prompt="a", max_tokens=1).json()["choices"][0]["text"] == "b"


def test_a_text_stops_at_its_end_and_before_a_stop_string(url):
    assert post(url, prompt="v", max_tokens=50).json()["choices"][0] == {
        "index": 0, "text": "wxyz", "finish_reason": "stop", "logprobs": None,
    }  # fmt: skip
    answer = post(url, prompt="a", stop=["xyz", "ef"], max_tokens=50).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("bcd", "stop")
    assert post(url, prompt="a", stop="d", max_tokens=50).json()["choices"][0]["text"] == "bc"


def test_n_texts_of_each_prompt(url):
    answer = post(url, prompt=["a", "k"], n=3, max_tokens=2, temperature=1e-9).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "bc"), (1, "bc"), (2, "bc"), (3, "lm"), (4, "lm"), (5, "lm"),
    ]  # fmt: skip
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}


def test_a_stream_has_a_chunk_for_each_token_and_its_usage(url):
    how = {"prompt": "w", "max_tokens": 9, "stream": True}
    texts = [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in chunks(post(url, **how))]
    assert texts == [("x", None), ("y", None), ("z", None), ("", "stop")]
    *with_text, last = chunks(post(url, **how, stream_options={"include_usage": True}))
    assert [chunk["usage"] for chunk in with_text] == [None] * 4
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}  # the end of text is one


def test_in_a_stream_what_may_become_a_stop_string_is_held_back(url):
    found = chunks(post(url, prompt="a", max_tokens=6, stop="df", stream=True))
    assert [chunk["choices"][0]["text"] for chunk in found] == ["b", "c", "", "de", "f", "g"]
    found = chunks(post(url, prompt="a", max_tokens=6, stop="de", stream=True))
    assert [chunk["choices"][0]["text"] for chunk in found] == ["b", "c", "", ""]
    assert found[-1]["choices"][0]["finish_reason"] == "stop"


def test_several_texts_in_a_stream_are_told_apart_by_their_index(url):
    texts = {0: "", 1: ""}
    for chunk in chunks(post(url, prompt=["a", "x"], max_tokens=4, stream=True, echo=True)):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "abcde", 1: "xyz"}


def test_logprobs_as_openai_has_them_and_exact_ones(url):
    (choice,) = post(url, prompt="a", max_tokens=2, logprobs=2).json()["choices"]
    found = choice["logprobs"]
    assert found["tokens"] == ["b", "c"]
    assert found["text_offset"] == [0, 1]
    assert found["token_logprobs"] == [pytest.approx(-256 * 2.06e-9, rel=0.01)] * 2
    assert list(found["top_logprobs"][0]) == ["b", "\0"]
    assert found["top_logprobs"][0]["\0"] == pytest.approx(-20)
    assert found["token_ids"] == [98, 99]
    assert found["token_bytes"] == [[98], [99]]
    assert found["top_token_ids"] == [[98, 0], [99, 0]]
    assert found["top_token_bytes"] == [[[98], [0]], [[99], [0]]]
    assert [len(each) for each in found["top_token_logprobs"]] == [2, 2]
    (choice,) = post(url, prompt="a", max_tokens=1, logprobs=0).json()["choices"]
    assert list(choice["logprobs"]["top_logprobs"][0]) == ["b"]
    assert choice["logprobs"]["top_token_ids"] == [[]]


def test_half_a_character_is_told_by_its_bytes(url):
    """After 0xC2 comes 0xC3, which begins another character."""
    (first, second) = chunks(post(url, prompt=[0xC1], max_tokens=2, logprobs=1, stream=True))
    assert first["choices"][0]["text"] == ""
    assert first["choices"][0]["logprobs"]["tokens"] == ["bytes:\\xc2"]
    assert first["choices"][0]["logprobs"]["token_bytes"] == [[0xC2]]
    assert second["choices"][0]["text"] == "\ufffd\ufffd"
    assert second["choices"][0]["finish_reason"] == "length"


def test_echo_begins_with_the_prompt_and_scores_it(url):
    (choice,) = post(url, prompt="ac", max_tokens=2, echo=True).json()["choices"]
    assert choice["text"] == "acde"
    (choice,) = post(url, prompt="ac", max_tokens=1, echo=True, logprobs=1).json()["choices"]
    found = choice["logprobs"]
    assert found["tokens"] == ["a", "c", "d"]
    assert found["token_logprobs"] == [pytest.approx(0, abs=1e-5), pytest.approx(-20), pytest.approx(0, abs=1e-5)]
    assert found["top_token_ids"] == [[97], [98], [100]]
    assert found["text_offset"] == [0, 1, 2]
    (choice,) = post(url, prompt=[256, 97], max_tokens=0, echo=True, logprobs=1).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["<|endoftext|>", "a"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["top_logprobs"][0] is None
    for prompt, shown in (("a ", "a "), ("", ""), ("<|endoftext|>a", "<|endoftext|>a"), ([97], "a"), ([256, 97], "a")):
        assert post(url, prompt=prompt, max_tokens=0, echo=True).json()["choices"][0]["text"] == shown
    (choice,) = post(url, prompt=[97, 99], max_tokens=0, echo=True, logprobs=1).json()["choices"]
    assert choice["logprobs"]["token_ids"] == [97, 99]  # as they are: after nothing
    assert choice["logprobs"]["token_logprobs"] == [None, pytest.approx(-20)]
    (choice,) = post(url, prompt="z", max_tokens=3, logprobs=0).json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]["tokens"]) == ("", "stop", ["<|endoftext|>"])
    answer = post(url, prompt="a" * 64, echo=True, logprobs=1)
    assert answer.status_code == 400
    assert "takes prompts of up to 63 tokens, not 64" in answer.json()["error"]["message"]


def test_our_own_settings_have_their_effect(url):
    cold = {"temperature": 1, "prompt": "a", "max_tokens": 3, "seed": 1}
    for how in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 0}):
        assert post(url, **{**cold, **how}).json()["choices"][0]["text"] == "bcd"
    answer = post(url, prompt="ba", max_tokens=1, repetition_penalty=100)
    assert answer.json()["choices"][0]["text"] == "\0"


def test_the_tokenizer_over_http(url):
    def ask(path, **body):
        return httpx.post(f"{url}/{path}", json=body)

    assert ask("tokenize", prompt="ab ").json() == {"count": 4, "max_model_len": 64, "tokens": [256, 97, 98, 32]}
    plain = ask("tokenize", prompt="<|endoftext|>\u00e9", add_special_tokens=False, model="any").json()
    assert plain["tokens"] == [256, 0xC3, 0xA9]
    assert ask("tokenize", prompt="", add_special_tokens=False).json()["tokens"] == []
    assert ask("detokenize", tokens=[256, 0xC3, 0xA9, 97]).json() == {"prompt": "<|endoftext|>\u00e9a"}
    assert ask("detokenize", tokens=[]).json() == {"prompt": ""}
    answer = ask("detokenize", tokens=[257])
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "There is no token 257: ids are below 257.")
    assert ask("tokenize").status_code == ask("detokenize", tokens=["a"]).status_code == 400
    assert ask("tokenize", prompt="a", other=1).status_code == 400
    info = httpx.get(f"{url}/tokenizer_info").json()
    assert (info["eos_token"], info["vocab_size"], info["model_max_length"]) == ("<|endoftext|>", 257, 64)


def test_the_entry_of_the_model(url, client):
    (entry,) = client.models.list().data
    assert (entry.id, entry.object, entry.owned_by) == ("m", "model", "small-language-model")
    assert client.models.retrieve("m") == entry
    told = httpx.get(f"{url}/v1/models").json()["data"][0]
    assert told["facts"] == {"step": 3, "val": {"loss": "nan"}}
    assert (told["parameters"], told["context_length"], told["vocab_size"]) == (26, 64, 257)
    assert told["tokenizer"] == "bytes"


@pytest.mark.parametrize(
    ("wrong", "param", "part"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 101}, "max_tokens", "'max_tokens' is 101; 100 is the most here."),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"n": 7}, "n", "7 texts are asked for"),
        ({"prompt": ["a"] * 4, "n": 2}, "n", "8 texts are asked for"),
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": [1, "a"]}, "prompt", "'prompt' must be a string, a list of strings,"),
        ({"prompt": {"a": 1}}, "prompt", "'prompt' must be a string, a list of strings,"),
        ({"prompt": [257]}, "prompt", "There is no token 257: ids are below 257."),
        ({"prompt": [[5, 10**30]]}, "prompt", "There is no token 1000"),
        ({"stop": ["a"] * 17}, "stop", "up to 16 strings"),
        ({"stop": ""}, "stop", "each of 1 to 500 characters"),
        ({"stop": ["a", "b" * 501]}, "stop", "each of 1 to 500 characters"),
        ({"stop": 5}, "stop", "'stop' must be a string or a list of strings."),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "for a 'stream' only"),
        ({"best_of": 3}, "best_of", "must be as 'n'"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
        ({"presence_penalty": "a"}, "presence_penalty", "valid number"),
        ({"logit_bias": {"257": 1}}, "logit_bias", "the key '257': keys are ids below 257."),
        ({"logit_bias": {"a": 1}}, "logit_bias", "the key 'a': keys are ids below 257."),
        ({"logit_bias": {"5": 101}}, "logit_bias", "less than or equal to 100"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias", "at most 1024 items"),
        ({"suffix": "end"}, "suffix", "not supported here"),
        ({"prmpt": "a"}, None, "Unrecognized request argument supplied: prmpt"),
    ],
)
def test_what_cannot_be_used_is_a_bad_request(client, wrong, param, part):
    known = {name: value for name, value in wrong.items() if name not in ("prmpt", "stop", "prompt")}
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(**{"model": "m", "prompt": wrong.get("prompt", "a"), "extra_body": wrong, **known})
    error = raised.value
    assert part in error.message
    assert (error.param, error.type) == (param, "invalid_request_error")


def test_what_asks_for_nothing_is_taken(url):
    nothing = {
        "best_of": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "suffix": None, "user": "me",
        "n": None, "stop": [], "top_k": None, "stream": None, "stream_options": None, "seed": -(2**63),
    }  # fmt: skip
    assert post(url, prompt="a", max_tokens=1, **nothing).json()["choices"][0]["text"] == "b"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"5", "must be a JSON object"),
        (b"\xff\xff", "error parsing the body"),
        (b"[" * 16_000, "error parsing the body"),
        (b"[" * 50_000, "up to 16,384 lists, objects and keys"),
        (b'{"model": "m", "n": ' + b"9" * 5000 + b"}", "error parsing the body"),
        (b'{"model": "m", "temperature": NaN}', "finite number"),
        (b'{"model": "\\ud800"}', "does not exist: this server has 'm'"),
        (b'{"model": "m", "\\ud800": 1}', "must be a JSON object"),
        (b"{}", "You must provide a 'model' parameter."),
    ],
)
def test_bodies_that_are_none(url, content, part):
    answer = httpx.post(f"{url}/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == (404 if "not exist" in part else 400)
    assert part in answer.json()["error"]["message"]


def test_a_lone_surrogate_is_read_as_the_replacement_character(url):
    content = b'{"model": "m", "prompt": "\\ud800", "echo": true, "max_tokens": 0, "stop": "\\ud800"}'
    answer = httpx.post(f"{url}/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.json()["choices"][0]["text"] == "\ufffd"


def test_another_model_and_another_path_are_not_found(url, client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.completions.create(model="gpt-4", prompt="a")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    answer = httpx.get(f"{url}/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "Unknown request URL: GET /v1/nothing"
    answer = httpx.get(f"{url}/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_of_a_hundred_thousand_wrong_entries_one_is_told():
    body = {"model": "m", "prompt": [1] * 100_000 + ["a"], "stop": [5] * 100_000}
    with pytest.raises(ValidationError) as error:
        CompletionRequest.model_validate(body)
    assert error.value.error_count() < 10


@pytest.mark.parametrize(
    "text", ["a\r\nb\n ", " ", "\t\0", "e\u0301", "\u00e9\U0001f98a", "<|endoftext|>", "\ufeffa", "'\"\\"]
)
@pytest.mark.parametrize("logprobs", [None, 0])
def test_echo_is_what_was_sent(url, text, logprobs):
    answer = post(url, prompt=[text, "k"], max_tokens=1, echo=True, n=2, logprobs=logprobs, logit_bias=None)
    texts = [choice["text"] for choice in answer.json()["choices"]]
    assert [each[: len(text)] for each in texts[:2]] == [text] * 2
    assert texts[2:] == ["kl"] * 2
    streamed = chunks(post(url, prompt=text, max_tokens=0, echo=True, stream=True, logprobs=logprobs))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == text


def test_a_chat_client_is_told_what_to_send(client):
    with pytest.raises(openai.NotFoundError, match=r"'m' is no chat model: .* Send a 'prompt' to /v1/completions"):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])


def test_penalties_and_biases_by_a_direct_computation(url, client):
    how = {"frequency_penalty": 1.5, "presence_penalty": 0.75, "logit_bias": {"98": -19.5, "120": 3, "256": -100}}
    written, last = [], ord("a")
    for _ in range(60):
        logits = Alphabet().logits([last])[0].astype(np.float64)
        for id in set(written):
            logits[id] -= 1.5 * written.count(id) + 0.75
        for id, bias in how["logit_bias"].items():
            logits[int(id)] += bias
        last = int(logits.astype(np.float32).argmax())
        written.append(last)
    completion = client.completions.create(model="m", prompt="a", temperature=0, max_tokens=60, logprobs=0, **how)
    assert completion.choices[0].logprobs.token_ids == written
    assert len(set(written)) > 20
    extra = client.completions.create(model="m", prompt="a", temperature=0, max_tokens=60, logprobs=0, extra_body=how)
    assert extra.choices[0].text == completion.choices[0].text
    more = {"top_k": 1, "min_p": 0.5, "seed": 4}
    assert client.completions.create(model="m", prompt="a", max_tokens=2, extra_body=more).choices[0].text == "bc"
