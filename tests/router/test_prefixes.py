"""What the router remembers of prompts: text, chats and token ids alike, without a tokenizer."""

from __future__ import annotations

import json

import pytest

from builders import make_spec
from spillway.core.ledger import Ledger
from spillway.core.types import NodeId, Role
from spillway.router.prefixes import BLOCK_BYTES, PromptMemory
from spillway.wire.openai import parse_body

LONG = "once upon a time there was " * 400  # 10.8 kB


def memory(blocks_max: int = 64, kv_capacity_tokens: int = 400_000) -> PromptMemory:
    specs = [
        make_spec("p0", Role.PREFILL, kv_capacity_tokens=kv_capacity_tokens),
        make_spec("d0", kv_capacity_tokens=kv_capacity_tokens),
    ]
    return PromptMemory(Ledger(specs, report_age_max_s=1.0).nodes, blocks_max)


def ask(
    known: PromptMemory, prompt: object, tokens: int = 2000, *, send: NodeId = "", **fields: object
) -> dict[NodeId, int]:
    """What is held of a prompt; then it is sent to `send`."""
    is_chat = not isinstance(prompt, str) and isinstance(prompt[0], dict)  # type: ignore[index]
    name = "messages" if is_chat else "prompt"
    body = json.dumps({"model": "m", name: prompt} | fields).encode()
    parsed = parse_body(body, is_chat=is_chat)
    is_ids = not is_chat and not isinstance(prompt, str)
    chain, held = known.recall(parsed, tokens, 0 if is_ids else len(parsed.prompt), 0.0)
    if send:
        known.sent(send, chain, 0.0)
    return dict(held)


def test_the_same_beginning_is_found_again_in_proportion() -> None:
    known = memory()
    assert ask(known, LONG, send="d0") == {}
    blocks = (len(LONG) + 2) // BLOCK_BYTES
    expected = int(blocks * 2000 * BLOCK_BYTES / (len(LONG) + 2))
    assert ask(known, LONG) == {"d0": expected}
    longer = ask(known, LONG + LONG, 4000)
    assert longer["d0"] == pytest.approx(expected, abs=4)
    assert ask(known, "another story" + LONG) == {}


def test_a_chat_s_next_turn_begins_like_the_one_before() -> None:
    known = memory()
    first = [{"role": "system", "content": LONG}, {"role": "user", "content": "hello"}]
    ask(known, first, send="p0")
    second = [*first, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}]
    assert ask(known, second)["p0"] > 1800


def test_token_ids_are_found_without_reading_them() -> None:
    known = memory()
    ids = list(range(10_000, 13_000))
    ask(known, ids, 3000, send="d0")
    held = ask(known, [*ids[:1500], *range(5, 1505)], 3000)["d0"]
    assert 1300 <= held <= 1500  # whole blocks, and never more than what they share


@pytest.mark.parametrize("field", ["cache_salt", "model", "tools"])
def test_what_changes_the_kv_of_a_prompt_is_part_of_its_name(field: str) -> None:
    known = memory()
    chat = [{"role": "user", "content": LONG}]
    ask(known, chat, send="d0")
    assert ask(known, chat)
    assert ask(known, chat, **{field: [{"a": 1}] if field == "tools" else "other"}) == {}


def test_only_the_first_blocks_are_looked_at_and_short_prompts_cost_nothing() -> None:
    known = memory(blocks_max=2)
    ask(known, LONG, send="d0")
    assert ask(known, LONG)["d0"] == int(2 * 2000 * BLOCK_BYTES / (len(LONG) + 2))
    body = parse_body(b'{"model":"m","prompt":"short"}', is_chat=False)
    assert known.recall(body, 1, 7, 0.0) == ((), ())


def test_a_node_is_remembered_within_its_room_and_until_it_is_lost() -> None:
    known = memory(kv_capacity_tokens=1024)
    ask(known, LONG, send="d0")
    assert ask(known, LONG)["d0"] == int(4 * 2000 * BLOCK_BYTES / (len(LONG) + 2))
    known.lost("d0")
    assert ask(known, LONG) == {}


async def test_a_router_that_remembers_tells_its_policy(bench, body) -> None:
    seen = []
    prefill, decode, server = await bench.pair(prefix_blocks_max=16)
    decide = server.shell.dispatcher.policy.decide

    class Watching:
        name = "watching"

        def decide(self, request, cluster):
            seen.append(dict(request.cached_tokens_by_node))
            return decide(request, cluster)

        pick_decode = server.shell.dispatcher.policy.pick_decode

    server.shell.dispatcher.policy = Watching()
    body["prompt"] = LONG
    for _ in range(2):
        assert (await bench.ask(server, body)).status == 200
    assert seen[0] == {}
    assert set(seen[1]) == {"p0", "d0"}
    assert (len(prefill.posts), len(decode.posts)) == (2, 2)


async def test_a_router_remembers_nothing_unless_asked(bench) -> None:
    _, _, server = await bench.pair()
    assert server.shell.memory is None
