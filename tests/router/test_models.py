"""The union of model lists, and when a model can be called unknown."""

from __future__ import annotations

import json

import msgspec

from spillway.router.models import ModelBook


def listed(*names: str) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json.dumps({"id": name}).encode()) for name in names}


def test_nothing_is_unknown_until_every_expected_node_has_told() -> None:
    book = ModelBook()
    book.expect("d0")
    book.expect("d1")
    assert book.may_exist("x")
    book.tell("d0", listed("a"))
    assert book.may_exist("x")
    book.tell("d1", listed("b"))
    assert book.may_exist("a")
    assert book.may_exist("b")
    assert not book.was_missed
    assert not book.may_exist("x")
    assert book.was_missed


def test_what_only_a_lost_node_served_is_no_longer_there() -> None:
    book = ModelBook()
    for node_id, models in (("d0", listed("a")), ("d1", listed("a", "b"))):
        book.expect(node_id)
        book.tell(node_id, models)
    assert json.loads(book.body())["data"] == [{"id": "a"}, {"id": "b"}]
    book.forget("d1")
    assert not book.may_exist("b")
    book.forget("d0")
    assert book.may_exist("b")  # with nobody there, nobody knows
