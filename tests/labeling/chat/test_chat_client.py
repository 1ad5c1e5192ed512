import pytest

from radtower.labeling.chat.chat_client import Server


@pytest.mark.parametrize("base_url", ["localhost:8000/v1", "ftp://x/v1", "http:///v1", ""])
def test_an_address_that_is_not_of_http_is_refused(base_url):
    with pytest.raises(ValueError, match="base_url must be an http or https address, got"):
        Server(base_url, 1.0)


def test_a_slash_at_the_end_of_the_address_does_not_matter():
    assert str(Server("http://x:1/v1/", 1.0).url) == str(Server("http://x:1/v1", 1.0).url)
    assert str(Server("http://x:1/v1", 1.0).url) == "http://x:1/v1/chat/completions"


def test_the_proxy_of_the_environment_is_used_unless_it_is_bypassed(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert Server("http://llm.example/v1", 1.0).proxy is None
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    assert Server("http://llm.example/v1", 1.0).proxy == "http://proxy:3128"
    assert Server("https://llm.example/v1", 1.0).proxy is None
    assert Server("http://127.0.0.1:8000/v1", 1.0).proxy is None


def test_the_key_is_not_shown():
    assert "secret" not in repr(Server("http://x/v1", 1.0, "secret"))
