"""Which parameters of a URL are taken for secrets, and which are those of ordinary pictures."""

from __future__ import annotations

import time

import pytest

from csr_ray.redaction import has_credentials, without_credentials

SECRET_NAMES = (
    "token", "private_token", "oauth_token", "refresh_token", "hf_token", "id-token", "accessToken", "ACCESS_TOKEN",
    "accesstoken", "hftoken", "x.token", "token[]", "auth[token]", "toKen", "downloadToken",
    "SASToken",
    "key", "api_key", "api-key", "apiKey", "APIKey", "APIKEY", "x-api-key", "access_key", "secret_key",
    "subscription-key", "Ocp-Apim-Subscription-Key", "aws_secret_access_key", "awssecretaccesskey", "AccountKey",
    "AWSAccessKeyId", "access_key_id", "OSSAccessKeyId",
    "secret", "client_secret", "clientsecret", "appSecret",
    "password", "user_password", "userPassword", "passwd", "db_passwd", "pass", "pwd", "db_pwd",
    "sig", "Signature", "se-sig", "SharedAccessSignature", "X-Amz-Signature", "X-Goog-Signature", "X-Amz-Date",
    "credential", "X-Amz-Credential", "Credentials", "user_credentials",
    "jwt", "JWT", "auth", "authorization",
    "%74oken", "%74%6F%6b%65%6E", "private%5Ftoken", "+token",
)  # fmt: skip
HARMLESS_NAMES = (
    "w", "h", "width", "size", "format", "auto", "fit", "crop", "q", "quality", "dpr", "v", "name", "itok", "ixlib",
    "monkey", "turkey", "hotkey", "keyword", "keyframe", "key_frame", "keys", "cachekey", "cache_key", "cacheKey",
    "sort_key", "design", "sigma", "assign", "tokens", "tokenizer", "token_count", "author", "author_id", "authority",
    "bypass", "compass", "season_pass", "passage", "secretary", "password_hint", "signature_version", "jwtless",
    "X-Size", "%77idth", "ключ",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_parameter_that_bears_the_name_of_a_secret_is_found_and_hidden(name: str) -> None:
    for before in ("?", "?w=3&", "?w=3;", "#", "#x=1&", "?w=3#/page?", "?url=https://other/b?"):
        url = f"https://host/a.png{before}{name}=hUsh/+?=Hush"
        assert has_credentials(url), url
        assert without_credentials(f"{url}&c=d#e") == f"https://host/a.png{before}{name}=***&c=d#e"


def test_a_secret_is_hidden_to_its_end() -> None:
    """A semicolon may part two parameters, or belong to the secret."""
    assert without_credentials("https://host/a?token=hUsh;Hush&c=d") == "https://host/a?token=***&c=d"
    assert without_credentials("https://host/a?token=hUsh?key=hUsh&c=d") == "https://host/a?token=***&c=d"
    assert without_credentials("https://host/a?sig=hUsh&my_key=hUsh#jwt=hUsh") == (
        "https://host/a?sig=***&my_key=***#jwt=***"
    )


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_the_parameters_of_ordinary_pictures_are_left_as_they_are(name: str) -> None:
    for before in ("?", "?w=3&", "#"):
        url = f"https://host/token/key/a.png{before}{name}=secret"
        assert not has_credentials(url) and without_credentials(url) == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://AK:a/b+c@bucket/x", "s3://***@bucket/x"),
        ("s3://AK:a/b@c@bucket/x@2", "s3://***@bucket/x@2"),
        ("S3A://AK:a/b@bucket s3n://AK:b@bucket", "S3A://***@bucket s3n://***@bucket"),
        ("s3://a:s3://b:c@bucket", "s3://***@bucket"),
        ("s3://bucket/a:b@2x.png", "s3://bucket/a:b@2x.png"),
        ("https://me:p@w@host/a@b", "https://***@host/a@b"),
        ("x https://t@host/a, https://u@host2", "x https://***@host/a, https://***@host2"),
        ("https://@host/a", "https://@host/a"),
        ("simplecache::abfs://c@account/x", "simplecache::abfs://c@account/x"),
        ("simplecache::https://me:pw@host/x", "simplecache::https://***@host/x"),
        ("xabfs://me:pw@host/x", "xabfs://***@host/x"),
    ],
)
def test_users_and_passwords_are_hidden_to_their_end(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
    assert has_credentials(url) == (url != shown)
    assert without_credentials(shown) == shown


@pytest.mark.parametrize(
    "part",
    [
        "a.", "1a", ":", "a:", "://", "://a:", "s3://", "s3://a:", "s3://a:a@", "a@", "@ s3://a:", "abfs://a@",
        "?token=a", "?token?token", "?tokentoken", "&a=?b=", "?token=?token=", "#key=", "%74", "secret", "access",
        "A", "aB",
    ],
)  # fmt: skip
def test_a_long_text_takes_no_longer_than_its_length_asks_for(part: str) -> None:
    """A row may have four million letters, and a prompt file many rows."""
    texts = [
        f"{before}{part * 10_000}{after}" for before in ("s3://", "https://h/?") for after in ("", "=a", "@", "!")
    ]
    started_s = time.process_time()
    for text in texts:
        has_credentials(text)
    assert time.process_time() - started_s < 3.0
