"""What is taken out of a text as a secret, and what is left because it is none."""

from __future__ import annotations

import json

import pytest

from drillyard.flows.redaction import MARK, redact

BEGIN, END = "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"
PEM = "MIIEowIBAAKCAQEAwJ0\nq8Xc5+RrQkq3t6K1pZ/a==\n"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"

# (what it is, the text with the secret as {}, the secret). The secret must go, and nothing else.
SECRETS = [
    ("JSON", '{{"user": "root", "password": "{}", "port": 1}}', "hunter2"),
    ("JSON with escapes", '{{"password":"{}","x":1}}', 'a\\"b\\\\c'),
    ("JSON in a JSON text", r'[INFO] ["config"] [json="{{\"password\":\"{}\",\"x\":1}}"]', "hunter2"),
    ("camel case", '"clientSecret": "{}"', "s-9f8e7d"),
    ("prefixed", '"security.encryption.auth_token": "{}"', "a1b2c3"),
    ("plural list", '"passwords": [{}]', '"a", "b"'),
    ("a header of Go", "map[Authorization:[{}] Accept:[*/*]]", "Bearer abcdef123456789"),
    ("TOML", 'user = "x"\npassword = "{}"\nname = "y"\n', "hun ter2"),
    ("TOML in one quote", "secret-key = '{}'\n", "hun ter2"),
    ("TOML over lines", 'passphrase = """{}"""\nx = 1\n', "one\ntwo"),
    ("YAML", "environment:\n  DB_PASSWORD: {}\n  OTHER: x\n", "hunter two"),
    ("a variable", "export AWS_SECRET_ACCESS_KEY={}\nPATH=/bin\n", "abc/def+ghi"),
    ("a variable with spaces", "API_KEY={}\nX=1", "a b c"),
    ("a list of variables", '"Env": ["A=1", "DB_PASSWORD={}", "PATH=/bin"]', "my secret pw"),
    ("an access key's id", "aws_access_key_id = {}\n", "AKIAIOSFODNN7EXAMPLE"),
    ("an access key's id without a name", "used {} for S3", "AKIAIOSFODNN7EXAMPLE"),
    ("a flag", "tikv-server --addr=x --password={} --data-dir=/d", "hunter2"),
    ("a flag and its argument", "tool --api-key {} --data-dir /d", "k-123"),
    ("a flag of Go", "pd-server -auth-token {} -name pd0", "t0k3n"),
    ("a flag and its argument in a script", "tool \\\n  --api-key \\\n  {} \\\n  --data-dir /d", "k-123"),
    ("argv in JSON", '["tool",\n  "--password",\n  "{}",\n  "--x"]', "hun ter2"),
    ("argv in YAML", "command:\n  - --secret\n  - {}\n  - --x\n", "hunter2"),
    ("a field of a log line", '[INFO] [lib.rs:88] ["connected"] [password={}] [user=root]', "hunter2"),
    ("a quoted field of a log line", '[INFO] ["connected"] [api_key="{}"] [user=root]', "hun ter2"),
    ("Rust", 'Config {{ user: "root", password: Some("{}"), port: 1 }}', "hunter2"),
    ("Rust without quotes", "Config {{ token: {}, port: 1 }}", "a1b2c3d4"),
    ("Python", "{{'token': b'{}', 'x': 1}}", "a1b2c3d4"),
    ("prose", "the password: {} is wrong", "hunter2"),
    ("a query", "GET /x?token={}&y=1 HTTP/1.1", "abcdefgh"),
    ("a header", "Authorization: {}\nAccept: */*\n", "Basic cm9vdDpodW50ZXIy"),
    ("a header in a command", "curl -H 'Authorization: {}' http://pd0:2379/", "Bearer abc"),
    ("a header in JSON", '"authorization": "{}"', "Digest username=x, response=y"),
    ("cookies", "Set-Cookie: {}\n", "session=abc; Path=/"),
    ("a bearer without a header", "sent Bearer {} to it", "abcdef.123456-xyz"),
    ("a JWT", "got {} from it", JWT),
    ("a URL", "connect to mysql://root:{}@db:4000/test", "hunter2"),
    ("a URL with an at sign", "http://root:{}@pd0:2379,http://pd1:2379", "hunter@2"),
    ("a URL without a user", "redis://:{}@cache:6379", "hunter2"),
    ("a DSN of Go", "root:{}@tcp(127.0.0.1:4000)/test", "hunter2"),
    ("a private key", f"x\n{BEGIN}{{}}{END}\ny", f"\n{PEM}"),
    ("a private key in JSON", f'"pem": "{BEGIN}{{}}{END}"', r"\nMIIEowIBAAKCAQEAwJ0\nq8Xc5\n"),
    ("a private key without its end", f'"pem": "{BEGIN}{{}}"', r"\nMIIEowIBAAKCAQEAwJ0\nq8Xc5\n"),
    ("a private key without its beginning", f"[INFO]\n{{}}{END}\ny", PEM),
]


@pytest.mark.parametrize(("text", "secret"), [case[1:] for case in SECRETS], ids=[case[0] for case in SECRETS])
def test_a_secret_goes_and_nothing_else(text: str, secret: str) -> None:
    before, after = text.replace("{{", "\0").replace("}}", "\1").split("{}")
    before, after = (part.replace("\0", "{").replace("\1", "}") for part in (before, after))
    found = redact(before + secret + after)
    assert found.count == 1
    assert found.text.startswith(before)
    assert found.text.endswith(after)
    assert found.text[len(before) : len(found.text) - len(after)].strip('"') in (MARK, f"{MARK}\n")
    again = redact(found.text)
    assert (again.text, again.count) == (found.text, 0), "what is redacted is no secret any more"


NO_SECRETS = [
    '"max-token-count": 3',
    '"token-limit": 100, "tokens": 1000, "granted_token": 4.5',
    'password-file = "/etc/pd/password"',
    "--private-key-path=/tls/key.pem --cert=/tls/cert.pem",
    'private-key = "/tls/server.key"',
    '"secret-name": "tls"',
    '"initial-cluster-token": "pd-cluster" --initial-cluster-token=x',
    '"enable-password": true, "require-token": false, "password": "", "token": null',
    "DB_PASSWORD: ${DB_PASSWORD}",
    "PWD=/work OLDPWD=/home",
    '[INFO] ["split"] [region_id=2] [start_key=7480000000000000FF5F72] [end_key=] [split_key="7A"]',
    '"start_key": "7480000000000000FF", "end_key": "", "key": "6B6579", "store_id": 4',
    "data_key=616263 lock_key=64 primary_key=65 monkey=1",
    "http://127.0.0.1:2379,http://127.0.0.1:2381",
    "git@github.com:tikv/pd.git and ssh://git@github.com/tikv/pd",
    "unexpected token: expected a name",
    "invalid credential: unknown",
    "wrong password for root",
    "the password. The token",
    "basic information about authorization",
    "-----BEGIN CERTIFICATE-----\nMIIEowIBAAKCAQEAwJ0\n-----END CERTIFICATE-----",
    '"git_hash": "drillyard-8.1.0", "deploy_path": "/usr/bin", "sha256": "a3f5"',
    "password: ******",
]


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_a_diagnosis_needs_stays(text: str) -> None:
    assert redact(text).text == text
    assert redact(text).count == 0


def test_json_stays_json() -> None:
    held = {"password": 1234, "token": ["a", "b"], "argv": ["--password", "x", "--y"], "credentials": {"secret": 'q"'}}
    for text in (json.dumps(held), json.dumps(held, indent=1), json.dumps({"log": json.dumps(held)})):
        found = redact(text)
        assert found.count == 4, found.text
        json.loads(found.text)
    assert json.loads(redact(json.dumps(held)).text)["credentials"] == {"secret": MARK}


def test_several_rules_on_one_secret_count_it_once() -> None:
    found = redact(f"Authorization: Bearer {JWT}")
    assert (found.text, found.count) == (f"Authorization: {MARK}", 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A" * 300_000,
        "key=" * 60_000,
        "token " * 60_000,
        "token" * 60_000,
        "token=[" * 20_000,
        '"password": "' * 2_000,
    ],
)
def test_no_text_takes_for_ever(text: str) -> None:
    redact(text)  # the suite's own time limit is the test
