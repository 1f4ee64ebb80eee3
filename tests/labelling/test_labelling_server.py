"""The labelling page's server: what it answers, to whom, and what it tells."""

import json
import re
import sys
import urllib.request

import pytest

from rlhf_jax.labelling import loop, panel, results, server, transfer
from rlhf_jax.labelling.store import Store
from rlhf_jax.labelling.task import Task
from rlhf_jax.labelling.tokens import Tokens
from rlhf_jax.schema import UserError
from tests.labelling.test_labelling_store import best_last, label, rows, store

testclient = pytest.importorskip(
  "starlette.testclient", reason="pip install -e '.[label]'"
)
HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=a()>"


class Asked:
  """Asks as one person, or as nobody."""

  def __init__(self, found, token=""):
    self.client = testclient.TestClient(
      server.application(found), base_url="http://127.0.0.1"
    )
    self.headers = {"Authorization": f"Bearer {token}"} if token else {}

  def __call__(self, path, body=None, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body or {})
    return self.client.post(
      path, content=content, headers=self.headers | headers
    )


@pytest.fixture
def found(tmp_path):
  with store(tmp_path, ("anna", "ben"), overlap=2) as made:
    made.add_items(rows(4), batch="a")
    yield made


def asked(found, name="anna"):
  tokens = Tokens(found.folder)
  token = tokens.admin() if name == "admin" else tokens.annotator(name)
  return Asked(found, token)


def test_the_files_load_nothing_else(found):
  client = Asked(found).client
  texts = {path: client.get(path) for path in server.FILES}
  for answer in texts.values():
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src")
    assert "unsafe" not in policy and "set-cookie" not in answer.headers
    assert "server" not in answer.headers
    assert not re.findall(r"https?://[^\"'\s)]+", answer.text)
    assert "innerHTML" not in answer.text and "style=" not in answer.text
  for path in ("/", "/admin"):
    names = re.findall(r'(?:src|href)="([^"#]+)"', texts[path].text)
    assert set(names) - {"data:,"} <= set(server.FILES)
  style = texts["/label.css"].text
  for name in re.findall(r"var\(--(\w+)\)", style):
    assert f"--{name}: #" in style
  assert client.get("/secret").status_code == 404
  assert client.get("/../secret").status_code == 404
  assert client.head("/").status_code == 200


def test_only_who_has_a_token_gets_an_answer(found):
  for path in server.PERSON:
    assert Asked(found)(path).status_code == 401
    assert Asked(found, "x" * 32)(path).status_code == 401
    assert asked(found, "admin")(path).status_code == 401
  for name in server.ADMIN:
    path = server.ADMIN_AT + name
    assert Asked(found)(path).status_code == 401
    assert asked(found)(path).status_code == 401
  assert asked(found)("/api/nothing").status_code == 404
  assert Asked(found)("/api/nothing").status_code == 401
  assert asked(found)("/api/task").json()["name"] == "anna"
  assert asked(found, "admin")("/api/admin/state").status_code == 200
  assert Asked(found, "\u00e9".encode("latin1"))("/api/next").status_code == 401


def test_tokens_are_of_the_folder_and_in_no_file_but_one(found, tmp_path):
  tokens = Tokens(tmp_path)
  made = [tokens.admin(), tokens.annotator("anna"), tokens.annotator("admin:")]
  assert len(set(made)) == 3 and made[0] == Tokens(tmp_path).admin()
  assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
  asked(found)("/api/next")
  found.backup()
  secret = (tmp_path / "secret").read_bytes()
  for path in tmp_path.rglob("*"):
    if path.is_file() and path.name != "secret":
      content = path.read_bytes()
      assert secret not in content
      assert not any(token.encode() in content for token in made)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_it_answers_to_its_own_name_alone(found, host):
  ask = asked(found)
  answer = ask("/api/next", Host=host)
  assert answer.status_code == 403
  assert ask.client.get("/", headers={"Host": host}).status_code == 403
  assert ask("/api/next", Host="localhost:99").status_code == 200
  made = server.application(found, ["Label.Example"])
  client = testclient.TestClient(made, base_url="http://label.example")
  assert client.get("/").status_code == 200


def test_other_pages_cannot_ask(found):
  ask = asked(found)
  for site in ("cross-site", "same-site", "none"):
    answer = ask("/api/next", **{"Sec-Fetch-Site": site})
    assert answer.status_code == 403
  assert "access-control-allow-origin" not in ask("/api/next").headers
  # A cookie or an address with the token says nothing.
  token = Tokens(found.folder).annotator("anna")
  nobody = Asked(found)
  assert nobody(f"/api/next?token={token}").status_code == 401
  assert nobody("/api/next", Cookie=f"token={token}").status_code == 401


def test_odd_requests_are_refused_in_words(found):
  ask = asked(found)
  assert ask("/api/submit", b"x" * 70_000).status_code == 413
  for content in (b"", b"[]", b"{", b'{"a": NaN}', b"\xff", b'"\\ud800"'):
    assert ask("/api/next", content).status_code == 400
  turn = ask("/api/next").json()
  for body in (
    {},
    {"assignment": turn["assignment"], "id": 3, "judgement": {}},
    {"assignment": turn["assignment"], "id": "a", "judgement": "x"},
    {"assignment": turn["assignment"], "id": "a", "judgement": {"ranks": 3}},
    {"assignment": ["x"], "id": "a", "judgement": {"ranks": [0, 1]}},
    {"assignment": {}, "id": {}, "judgement": {}},
  ):
    answer = ask("/api/submit", body)
    assert answer.status_code == 400 and answer.json()["error"], body
  assert ask("/api/undo", {"id": []}).status_code == 400
  assert found.records() == []
  admin = asked(found, "admin")
  for name, body in (
    ("pause", {"is_paused": 1}),
    ("pause", {"is_paused": True, "annotator": "nobody"}),
    ("add", {"annotator": 3}),
    ("add", {"annotator": "a\nb"}),
    ("adjudicate", {"item": "none", "judgement": {}}),
    ("adjudicate", {"item": 3}),
  ):
    assert admin(f"/api/admin/{name}", body).status_code == 400, (name, body)


def test_a_person_answers_and_takes_back(found):
  ask = asked(found)
  turn = ask("/api/next").json()
  assert turn["state"] == "item" and len(turn["answers"]) == 2
  assert not {"item", "kind", "shown", "gold"} & turn.keys()
  body = {"assignment": turn["assignment"], "id": "x"}
  body["judgement"] = {"ranks": [0, 1], "seconds": 1.5, "reason": HOSTILE}
  answer = ask("/api/submit", body).json()
  assert answer["is_new"] and answer["mine"] == 1 and answer["last"] == "x"
  assert not ask("/api/submit", body).json()["is_new"]
  other = ask("/api/submit", body | {"id": "y"})
  assert other.status_code == 409 and "already" in other.json()["error"]
  [record] = found.records()
  assert record["seconds"] == 1.5 and record["reason"] == HOSTILE
  assert record["shown"][0] == record["ranks"].index(0)
  back = ask("/api/undo", {"id": "x"}).json()
  assert back["is_new"] and back["assignment"] == turn["assignment"]
  assert back["previous"]["ranks"] == [0, 1]
  assert not ask("/api/undo", {"id": "x"}).json()["is_new"]
  assert found.records() == []


def test_an_admin_sees_decides_and_exports(found, tmp_path):
  label(found, "anna")
  label(found, "ben", lambda turn: {"ranks": best_last(turn)["ranks"][::-1]})
  ask = asked(found, "admin")
  state = ask("/api/admin/state").json()
  assert state["disputed"] == 4 and state["progress"]["closed"] == 4
  assert state["agreement"]["raw"] == 0.0
  assert "below 70%" in state["agreement"]["warnings"][0]
  assert [x["name"] for x in state["people"]] == ["anna", "ben"]
  items = ask("/api/admin/disputed").json()["items"]
  assert [len(x["judgements"]) for x in items] == [2] * 4
  told = {"ranks": [1, 0], "reason": "clear"}
  body = {"item": items[0]["item"], "judgement": told}
  left = ask("/api/admin/adjudicate", body).json()["items"]
  assert left[-1]["decision"]["ranks"] == [1, 0]
  assert sum(x["decision"] is None for x in left) == 3
  records = found.records()
  decided = [x for x in records if x.get("adjudicated")]
  assert len(records) == 7 and decided[0]["annotator"] == "adjudicator"
  assert len(found.records(is_adjudicated=False)) == 8
  lines = ask("/api/admin/records").text.splitlines()
  assert len(lines) == 9
  paused = ask("/api/admin/pause", {"is_paused": True}).json()
  assert paused["is_paused"] and found.is_paused()
  added = ask("/api/admin/add", {"annotator": HOSTILE}).json()
  assert added["people"][-1]["name"] == HOSTILE
  assert asked(found, HOSTILE)("/api/next").json()["state"] == "paused"
  name = ask("/api/admin/backup").json()["file"]
  assert (tmp_path / "backups" / name).is_file()


def test_whole_dialogues_against_each_other(tmp_path):
  talks = [[{"role": "assistant", "content": text}] for text in "ab"]
  with store(tmp_path, ("anna", "ben"), overlap=2) as found:
    found.add_items(
      [{"prompt": prompt, "answers": talks} for prompt in ("q", talks[0])]
    )
    for name in ("anna", "ben"):
      turn = asked(found, name)("/api/next").json()
      assert sorted(x[0]["content"] for x in turn["answers"]) == ["a", "b"]
      label(found, name, lambda turn: {"ranks": [0, 1]})
    state = asked(found, "admin")("/api/admin/state").json()
    assert state["agreement"]["pairs"] == 2
    # What training would refuse is told, and the page goes on.
    assert "nothing to answer" in str(state["agreement"]["warnings"])


def test_agreement_is_counted_again_when_there_is_more(found):
  shown = panel.Panel(found)
  assert shown()["raw"] is None and shown() is shown()
  label(found, "anna")
  label(found, "ben")
  shown._at = float("-inf")
  assert shown()["raw"] == 1.0 and shown()["pairs"] == 4


def test_what_is_exported_can_be_read_again(tmp_path):
  shares = dict(gold_share=0.3, check_share=0.1)
  with store(tmp_path / "a", ("anna", "ben"), overlap=2, **shares) as one:
    gold = rows(3)
    for n, row in enumerate(gold):
      row |= {"item": f"g{n}", "gold": True, "ranks": [1, 0], "language": "ar"}
    one.add_items(gold + rows(12), batch="r")
    one.add_annotator("ben", {"group": "students"})
    label(one, "anna")
    label(one, "ben", lambda turn: {"ranks": [0, 1], "reason": "first"})
    turn_told = {"ranks": [0, 0], "all_bad": True}
    one.adjudicate("i3", turn_told)
    count = one.export(tmp_path / "x.jsonl")
    with Store(tmp_path / "b") as other:
      assert transfer.import_records(other, tmp_path / "x.jsonl") == count - 3
      assert transfer.import_records(other, tmp_path / "x.jsonl") == 0
      other.export(tmp_path / "y.jsonl")
      lines = [
        sorted(
          json.dumps(json.loads(line), sort_keys=True)
          for line in (tmp_path / name).read_text().splitlines()
        )
        for name in ("x.jsonl", "y.jsonl")
      ]
      assert lines[0] == lines[1]
      assert other.progress("r") == one.progress("r") | {"wanted": 12}


@pytest.mark.parametrize(
  "row, rule",
  [
    ({"annotator": "a"}, "neither 'ranks' nor"),
    ({"annotator": "a", "ranks": [0]}, "one entry an answer"),
    ({"annotator": "a", "ranks": [0, 1], "shown": [0, 0]}, "'shown'"),
    ({"answers": ["a"]}, "1 answers"),
    ({"annotator": "a", "ranks": ["0", 1]}, "whole number"),
    ({"annotator": "a", "choice": 2}, "number of the best answer"),
    ({"annotator": True, "ranks": [0, 1]}, "must be a text"),
    ({"annotator": "a\nb", "ranks": [0, 1]}, "on one line"),
    (
      {"annotator": "a", "ranks": [0, 1], "annotator_fields": "ar"},
      "must be an object",
    ),
    (
      {"prompt": "p", "batch": "b", "language": "ar"},
      "other texts or fields are there",
    ),
  ],
)
def test_what_is_no_record_is_refused_whole(tmp_path, row, rule):
  path = tmp_path / "x.jsonl"
  good = {
    "prompt": "p",
    "answers": ["a", "b"],
    "annotator": "a",
    "ranks": [0, 1],
  }
  bad = {"prompt": "q", "answers": ["a", "b"]} | row
  path.write_text(json.dumps(good) + "\n" + json.dumps(bad))
  with Store(tmp_path / "s") as found:
    with pytest.raises(UserError, match=rule) as error:
      transfer.import_records(found, path)
    assert "x.jsonl:2: " in str(error.value) or "other texts" in rule
    assert found.records() == [] and found.progress()["items"] == 0
    assert found.annotators() == []


@pytest.mark.parametrize(
  "host, names, called",
  [
    ("127.0.0.1", (), "127.0.0.1"),
    ("127.0.0.1", ("label.example.org",), "127.0.0.1"),
    ("::1", (), "[::1]"),
    ("0.0.0.0", ("box",), "box"),
    ("0.0.0.0", (), "127.0.0.1"),
    ("::", (), "127.0.0.1"),
    ("192.168.1.5", (), "192.168.1.5"),
    ("fe80::1", (), "[fe80::1]"),
    ("192.168.1.5", ("box", "other"), "box"),
  ],
)
def test_links_have_a_name_that_the_page_answers_to(host, names, called):
  assert loop.called_by(host, names) == called


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's")
def test_a_page_for_others_answers_to_its_links(tmp_path):
  pytest.importorskip("uvicorn", reason="pip install -e '.[label]'")
  with (
    store(tmp_path) as found,
    loop.serve(found, 0, "127.0.0.2") as page,
    urllib.request.urlopen(page.address) as answer,
  ):
    assert page.address.startswith("http://127.0.0.2:")
    assert answer.status == 200


def test_annotators_may_be_numbers_and_places_texts(tmp_path):
  """Public data name annotators so; 0 is one too."""
  path = tmp_path / "x.jsonl"
  common = {"prompt": "p", "answers": ["a", "b"], "ranks": [1, 2]}
  path.write_text(
    "".join(
      json.dumps(common | {"annotator": n, "shown": ["1", "0"]}) + "\n"
      for n in (0, 7)
    )
  )
  with Store(tmp_path / "s") as found:
    assert transfer.import_records(found, path) == 2
    assert found.annotators() == ["0", "7"]
    assert [x["shown"] for x in found.records()] == [[1, 0]] * 2
    first, _ = results.people(found.database)
    assert first["first_share"] == 0.0


def test_a_task_says_what_cannot_be():
  for fields, rule in (
    (dict(ask="best"), "ask='best'"),
    (dict(order="clever"), "order='clever'"),
    (dict(random_share=0.5), "asks no model"),
    (dict(gold_share=0.4, check_share=0.2), "no new item"),
    (dict(ask="choice", strengths=True), "best answer alone"),
    (dict(dimensions=("a", "a")), "each once"),
    (dict(overlap=0), "overlap=0"),
  ):
    with pytest.raises(UserError, match=rule):
      Task(**fields)
